"""What a policy loss may read of the policy's output, and what it must return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar, get_args

from torch import Tensor

from ippo_lightning.algorithms import AdvantageEstimator, PolicyLoss
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import KLEstimator, LossReduction, masked_row_mean, update_diagnostics
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import Episodes, Minibatch

Record = TypeVar("Record", bound=Episodes)
READABLE = frozenset({"entropy", "values"})
"""Fields of a `PolicyOutput` that are computed on demand; the log-probs are always there."""


def require_parts(loss: object, advantages: object, *, loss_reads: frozenset[str], has_values: bool) -> None:
    """Check the objects that make an algorithm.

    Args:
        loss: a `PolicyLoss`.
        advantages: an `AdvantageEstimator`.
        loss_reads: of the module's class.
        has_values: whether the policy has a critic.

    Raises:
        UserError: another type, an unknown name in `loss_reads` or in `reads` of the loss, or a critic that the
            advantage estimator does not use.
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
    if has_values and not advantages.needs_values:
        name = type(advantages).__name__
        raise UserError(f"policy.value: {name} reads no values, and the policy has a critic; set value to none")


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
    return terms.expand(rows, steps)


def sums_for_log(output: PolicyOutput, minibatch: Minibatch, *, bounds: tuple[float, float]) -> dict[str, Tensor]:
    """Return sums over the steps that count: divergence, clipping, ratio and entropy.

    Args:
        output: at the current parameters, with entropy.
        minibatch: with the log-probs of the policy that sampled.
        bounds: of the ratio.
    """
    assert output.entropy is not None, "requested for the log"
    episodes = minibatch.episodes
    # `value_weights`: a row that is dropped for the policy counts, one that only fills a rank does not.
    counted = episodes.mask & (minibatch.value_weights > 0)[:, None]
    low, high = bounds
    sums = update_diagnostics(
        log_probs=output.log_probs.detach(),
        old_log_probs=episodes.log_probs,
        mask=counted,
        clip_low=low,
        clip_high=high,
    )
    sums["entropy_sum"] = (output.entropy.detach() * counted).sum()
    return sums


def row_losses(terms: Tensor, episodes: Episodes, reduction: LossReduction) -> Tensor:
    """Return the policy loss of each episode, shape [rows]: the mean over its steps, or their sum for `token_mean`.

    Args:
        terms: the loss of each step, shape [rows, steps].
        episodes: the same rows.
        reduction: of training; scores of another loss would not describe the update.
    """
    means = masked_row_mean(values=terms, mask=episodes.mask)
    return means if reduction == "episode_mean" else means * episodes.lengths
