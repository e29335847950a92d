"""The gain of the coming update on the target's loss, predicted from scores along groups of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths import GainEstimate, cross_fitted_gain
from ippo_lightning.selection.table import RolloutTable

FEWEST_GROUPS = 4
"""Two for each half of the demonstrations, so that each half has a spread."""


@dataclass(kw_only=True)
class GainPredictor:
    """Predicts from a table of scores what the coming update does to the target's loss.

    Args:
        every_n_iterations: predict in every n-th filtered iteration.
        first_iteration: the first one that is filtered, counted from 0.
    """

    every_n_iterations: int = 1
    first_iteration: int = 0
    newest: GainEstimate | None = None
    """Of the newest iteration; None if it had no prediction."""

    def is_due(self, iteration: int) -> bool:
        """Return whether iteration number `iteration`, counted from 0, needs scores along the groups."""
        return (iteration - self.first_iteration) % self.every_n_iterations == 0

    def predict(self, table: RolloutTable, weights_of: Callable[[RolloutTable], Tensor]) -> None:
        """Set `newest`; if a half keeps responses to fewer than two prompts, to no gain.

        Args:
            table: of all ranks, with the scores along each group and the columns that the rule reads.
            weights_of: returns the weights of the update from a table, shape [rows]; it is called with the scores along
                each half of the demonstrations.

        Raises:
            UserError: too few groups of demonstrations.
        """
        groups = table.group_scores
        if len(groups) < FEWEST_GROUPS:
            raise UserError(
                f"GainStopping: the demonstrations are {len(groups)} groups; expected at least {FEWEST_GROUPS}, so at "
                f"least {FEWEST_GROUPS} demonstrations, or as many batches if only batches are known"
            )
        halves = [groups[half::2].mean(dim=0) for half in (0, 1)]
        weights = [
            weights_of(replace(table, columns={**table.columns, "scores": scores})).to(groups) for scores in halves
        ]
        # On the CPU, whose sums have one order: each rank predicts, and all of them must stop together.
        gain = cross_fitted_gain(
            group_scores=groups.cpu(), weights=torch.stack(weights).cpu(), clusters=table.groups.cpu()
        )
        # The responses to one prompt have no spread over prompts: an error of 0 would make any gain a certain one.
        has_spread = all(len(table.groups[kept > 0].unique()) > 1 for kept in weights)
        self.newest = gain if has_spread else gain.times(0)


def interval(estimate: GainEstimate, *, confidence: float) -> tuple[float, float]:
    """Return the ends of the two-sided interval of an estimate, by Student's t.

    Args:
        estimate: of a gain.
        confidence: in (0, 1).
    """
    from scipy import stats

    half_width = float(stats.t.ppf((1 + confidence) / 2, estimate.degrees_of_freedom)) * estimate.standard_error
    return estimate.mean - half_width, estimate.mean + half_width


def weights_of_all(table: RolloutTable) -> Tensor:
    """Return the weights of an update that no rule changes, shape [rows].

    Args:
        table: of all ranks.
    """
    return (table.kept & ~table.force_drop).double()


def clipped_size(*, max_norm: float | None, norm: float | None) -> float:
    """Return the factor by which gradient clipping shortens a step.

    Args:
        max_norm: of the clipping; None for none.
        norm: of the gradient before clipping; None if unknown.
    """
    if max_norm is None or norm is None or not math.isfinite(norm) or norm <= max_norm:
        return 1.0
    return max_norm / norm
