"""Scores from hidden states: does a row move the policy towards what demonstrations look like inside the model?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, rank, world_size
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.selection.scorer import Scored
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.targets import Demonstrations, Target, TargetLoss


class ForwardTarget(Target):
    """A target that scores rows by itself, without a gradient."""

    @abstractmethod
    def scores(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> Tensor:
        """Return the score of each row, shape [rows]; all ranks call this together. Arguments as in `loss`."""

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Refuse to give a loss: there is none.

        Raises:
            UserError: always.
        """
        raise UserError(f"target: {type(self).__name__} has no loss whose gradient could be taken; use another target")


@dataclass(frozen=True, kw_only=True)
class ActivationDifference(ForwardTarget):
    """Cosine of hidden-state differences: of a row's, and of the demonstrations against the policy's responses.

    score_i = sign(A_i) cos(h_i - mean of h over the responses to the same prompt, d)
    d = mean of h over the demonstrations - mean of h over all responses of the rollout

    h is the mean hidden state of a response after a layer, A_i the mean advantage. A prompt with one response is
    compared with the mean of the rollout. The update moves the policy towards responses with A > 0 and away from the
    others; so a positive score means that it moves towards the demonstrations. For two responses to a prompt, one
    better than the other, both scores are the cosine of the better minus the worse one, as for a pair of preferences.
    Source: arXiv 2602.11079, there for pairs of preferences, and the behaviour of a model after and before training.

    Args:
        batches: demonstrations, the same on each rank; null for those of the data module's `influence_dataloader()`.
        layer: number of the layer, counted from 1; null for the middle one.

    Raises:
        UserError: a number out of its range; when a fit begins, a module without hidden states or without this layer.
    """

    batches: Sequence[Any] | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            require_range("target.layer", self.layer, at_least=1, integer=True)

    def require(self, module: Any) -> None:
        """Check that the module gives hidden states of this layer.

        Raises:
            UserError: it does not.
        """
        check = getattr(module, "require_layer", None)
        if not callable(check) or not callable(getattr(module, "response_activations", None)):
            kind = type(module).__name__
            found = f"ActivationDifference reads hidden states, and {kind} has no method response_activations"
            raise UserError(f"InfluenceFilter.target: {found}; use another target")
        check(self.layer)

    def scores(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> Tensor:
        """Return the scores, shape [rows], float32."""
        batches = Demonstrations(batches=self.batches).loss(module, plan, trainer=trainer).batches
        # Ranks share the batches, unless each forward is a collective of all of them.
        own = batches if is_sharded(module) else batches[rank() :: world_size()]
        rows = module.response_activations(plan.episodes, layer=self.layer).double()
        shown = [module.response_activations(batch, layer=self.layer).double() for batch in own]
        good, mean = _mean_of_ranks(torch.cat([rows[:0], *shown])), _mean_of_ranks(rows)
        return difference_scores(plan.episodes, rows, mean=mean, behaviour=good - mean).float()


def difference_scores(episodes: Episodes, hidden: Tensor, *, mean: Tensor, behaviour: Tensor) -> Tensor:
    """Return sign(A) cos(difference, behaviour) of each row, shape [rows].

    Args:
        episodes: with advantages and groups.
        hidden: mean hidden states of the rows, shape [rows, width].
        mean: of the rollout, shape [width]; what a response is compared with that is alone with its prompt.
        behaviour: the direction, shape [width].
    """
    _, members, counts = episodes.group.unique(return_inverse=True, return_counts=True)
    sums = hidden.new_zeros(len(counts), hidden.shape[1]).index_add(0, members, hidden)
    of_prompt = sums / counts[:, None]
    base = torch.where((counts > 1)[members, None], of_prompt[members], mean)
    signs = masked_row_mean(values=episodes.advantages, mask=episodes.mask).sign()
    return signs * torch.cosine_similarity(hidden - base, behaviour[None], dim=1)


def scored_forward(target: ForwardTarget, module: Any, plan: UpdatePlan, *, trainer: Any, skips: bool) -> Scored:
    """Return the scores of a target without gradients, in the form of those with gradients.

    Args:
        target: makes the scores.
        module: under training.
        plan: of this rank's rows.
        trainer: see `Target.loss`.
        skips: whether a row whose score is NaN or infinite is left out; else it is an error.

    Raises:
        FloatingPointError: a score is NaN or infinite and may not be skipped.
        UserError: the target returned no number per row.
    """
    found: Any = target.scores(module, plan, trainer=trainer)
    if not isinstance(found, Tensor) or found.shape != plan.weights.shape:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{type(target).__name__}.scores: returned {kind}; expected shape {tuple(plan.weights.shape)}")
    broken = ~found.isfinite()
    if bool(broken.any()) and not skips:
        row = int(broken.nonzero()[0])
        named = f"{plan.episodes.row_name} {row} ({plan.episodes.describe(row)})"
        raise FloatingPointError(f"InfluenceFilter: NaN or infinity in the score of {named}")
    return Scored(
        scores=found.masked_fill(broken, 0.0),
        group_scores=found.new_zeros(0, len(found)),
        by_parameter={},
        broken=broken.cpu(),
    )


def require_no_gradient_settings(target: Target, scoring: ScoringSettings, *, by_groups: bool) -> None:
    """Refuse settings of gradients beside a target without them.

    Args:
        target: of the filter.
        scoring: settings.
        by_groups: whether rows are dropped by the votes of groups.

    Raises:
        UserError: names the setting.
    """
    if not isinstance(target, ForwardTarget):
        return
    name = f"and {type(target).__name__} takes no gradients"
    for one in fields(ScoringSettings):
        value = getattr(scoring, one.name)
        if value != getattr(ScoringSettings(), one.name) and not one.name.startswith("health_"):
            raise UserError(f"InfluenceFilter.scoring.{one.name}: {value}, {name}; leave it out")
    if by_groups:
        raise UserError(f"InfluenceFilter.drop_when: all, {name}; use mean")


def _mean_of_ranks(rows: Tensor) -> Tensor:
    """Return the mean over the finite rows of all ranks, shape [width]."""
    finite = rows[rows.isfinite().all(dim=1)]
    sums = torch.cat([finite.sum(dim=0), rows.new_tensor([len(finite)])])
    total = all_reduce_sum(sums)
    return total[:-1] / total[-1]
