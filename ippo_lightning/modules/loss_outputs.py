"""What a policy loss may read of the policy's output, and what it must return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args

from torch import Tensor

from ippo_lightning.algorithms import AdvantageEstimator, PolicyLoss
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import KLEstimator, LossReduction, masked_row_mean, reduce_terms, update_diagnostics
from ippo_lightning.policies import CausalLMPolicy, PolicyOutput, SamplingSettings
from ippo_lightning.records import Episodes, Minibatch

Record = TypeVar("Record", bound=Episodes)
READABLE = frozenset({"entropy", "values"})
"""Fields of a `PolicyOutput` that are computed on demand; the log-probs are always there."""


def require_parts(
    loss: object,
    advantages: object,
    *,
    loss_reads: frozenset[str],
    policy: CausalLMPolicy,
    sampling: SamplingSettings,
) -> None:
    """Check the objects that make an algorithm.

    Args:
        loss: a `PolicyLoss`.
        advantages: an `AdvantageEstimator`.
        loss_reads: of the module's class.
        policy: under training.
        sampling: of the rollout.

    Raises:
        UserError: another type, an unknown name in `loss_reads` or in `reads` of the loss, a critic that the advantage
            estimator does not use, one response per prompt where responses are compared, or no reference where the
            loss needs one.
    """
    for field, part, expected in (("loss", loss, PolicyLoss), ("advantages", advantages, AdvantageEstimator)):
        if not isinstance(part, expected):
            name = f"ippo_lightning.algorithms.{expected.__name__}"
            raise UserError(f"model.{field}: got {type(part).__name__}; expected an object of a subclass of {name}")
    assert isinstance(loss, PolicyLoss), "checked above"
    assert isinstance(advantages, AdvantageEstimator), "checked above"
    for field, names in (("loss_reads", loss_reads), ("loss.reads", loss.reads)):
        unknown = sorted(set(names) - READABLE)
        if unknown:
            raise UserError(f"model.{field}: {unknown[0]!r} is unknown; expected names from entropy, values")
    name = type(advantages).__name__
    if policy.has_values and not advantages.needs_values:
        raise UserError(f"policy.value: {name} reads no values, and the policy has a critic; set value to none")
    if advantages.needs_groups and sampling.num_responses < 2:
        found = f"{name} compares the responses to a prompt with each other"
        raise UserError(f"sampling.num_responses: {sampling.num_responses}, and {found}; expected at least 2")
    # Without a reference its log-probs are those of the rollout, and the penalty would be for any change at all.
    if loss.needs_reference and not policy.has_reference:
        raise UserError(f"policy.reference: none, and {type(loss).__name__} has a beta above 0; use auto, or beta 0")


def require_coefficients(entropy_coef: float, missing_eos_penalty: float, kl_estimator: str) -> None:
    """Check the numbers and words beside the objects.

    Args:
        entropy_coef: see `PPOModule`.
        missing_eos_penalty: see `PPOModule`.
        kl_estimator: see `PPOModule`.

    Raises:
        UserError: a number out of its range, or an unknown estimator.
    """
    require_range("model.entropy_coef", entropy_coef, at_least=0, below=math.inf)
    require_range("model.missing_eos_penalty", missing_eos_penalty, at_least=0, below=math.inf)
    require_choice("model.kl_estimator", kl_estimator, get_args(KLEstimator))


def checked_terms(
    loss_terms: Callable[[PolicyOutput, Record], Tensor],
    output: PolicyOutput,
    episodes: Record,
    *,
    reads: frozenset[str],
) -> Tensor:
    """Return the loss of each step, from an output that contains only what the loss declares.

    Args:
        loss_terms: returns shape [rows, steps], or [rows, 1] for one loss per row.
        output: of the policy.
        episodes: the same rows.
        reads: fields of the output, besides the log-probs, that the loss declares.

    Returns:
        Shape [rows, steps].

    Raises:
        UserError: the loss reads what it does not declare, or returns another shape.
    """
    # An undeclared entropy is detached, and a rollout stores none: a loss that read it would lose a gradient silently.
    hidden = READABLE - reads
    visible = PolicyOutput(
        log_probs=output.log_probs,
        entropy=None if "entropy" in hidden else output.entropy,
        values=None if "values" in hidden else output.values,
    )
    try:
        terms = loss_terms(visible, episodes)
    except (TypeError, AttributeError) as error:
        if hidden and "None" in str(error):
            names = " or ".join(f"output.{name}" for name in sorted(hidden))
            raise UserError(
                f"loss_terms: {error}; if it reads {names}, list the name in loss_reads of the module, or in reads of "
                "the loss"
            ) from error
        raise
    rows, steps = episodes.mask.shape
    # With as many rows as steps, a loss per row would be broadcast along the wrong axis without an error.
    if terms.dim() != 2 or terms.shape[0] != rows or terms.shape[1] not in (1, steps):
        raise UserError(f"loss_terms: returned shape {list(terms.shape)}; expected [rows, steps], here {[rows, steps]}")
    return terms if terms.shape[1] == steps else terms.expand(rows, steps)


def sums_for_log(output: PolicyOutput, minibatch: Minibatch, *, loss: PolicyLoss) -> dict[str, Tensor]:
    """Return sums over the steps that count: divergence, clipping, ratio and entropy.

    Args:
        output: at the current parameters, with entropy.
        minibatch: with the log-probs of the policy that sampled.
        loss: gives the ratio and its bounds.
    """
    assert output.entropy is not None, "requested for the log"
    episodes = minibatch.episodes
    # `value_weights`: a row that is dropped for the policy counts, one that only fills a rank does not.
    counted = episodes.mask & (minibatch.value_weights > 0)[:, None]
    low, high = loss.bounds
    log_probs = output.log_probs.detach()
    sums = update_diagnostics(
        log_probs=log_probs,
        old_log_probs=episodes.log_probs,
        mask=counted,
        clip_low=low,
        clip_high=high,
        clipped_log_ratio=loss.log_ratio(log_probs, episodes),
    )
    sums["entropy_sum"] = (output.entropy.detach() * counted).sum()
    return sums


class Reduction(NamedTuple):
    """How the losses of steps become one number per row, and one per minibatch."""

    kind: LossReduction
    max_length: int
    """Steps, which `fixed_length` divides by."""

    @classmethod
    def of(cls, module: Any) -> Reduction:
        """Return the reduction that a `PPOModule` trains with."""
        return cls(module.update_settings.loss_reduction, module.sampling.max_new_tokens)

    def of_rows(self, terms: Tensor, episodes: Episodes) -> Tensor:
        """Return the loss of each row, shape [rows], so that a score describes what training adds up.

        What a minibatch is divided by is a constant of its rows' losses, and left out.

        Args:
            terms: the loss of each step, shape [rows, steps].
            episodes: the same rows.
        """
        means = masked_row_mean(values=terms, mask=episodes.mask)
        if self.kind == "episode_mean":
            return means
        sums = means * episodes.lengths
        return sums / self.max_length if self.kind == "fixed_length" else sums

    def of_minibatch(self, terms: Tensor, weights: Tensor, denominator: float, *, mask: Tensor) -> Tensor:
        """Return the loss of a minibatch, shape []; arguments as in `reduce_terms`."""
        return reduce_terms(
            terms=terms,
            mask=mask,
            weights=weights,
            reduction=self.kind,
            denominator=denominator,
            max_length=self.max_length,
        )
