"""Numbers about the scores and weights of a plan, for the log."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.influence import gradient_norm, score_quantiles
from ippo_lightning.maths import effective_sample_size
from ippo_lightning.selection.grouped_gradients import TargetGradients
from ippo_lightning.selection.score_health import health_of, part_fractions
from ippo_lightning.selection.scorer import Scored
from ippo_lightning.selection.table import RolloutTable


def weight_metrics(factors: Tensor) -> dict[str, float]:
    """Return numbers about the weights of all ranks, for `UpdatePlan.record`.

    Args:
        factors: shape [rows], 0 for rows that are dropped.
    """
    # As one column of several: torch sums a contiguous tensor in another order, and the last bit of the effective
    # sample size would depend on how many columns are gathered.
    factors = torch.stack([factors, factors], dim=1)[:, 0]
    return {
        "influence__scored_kept_fraction": int((factors > 0).sum()) / max(len(factors), 1),
        "influence__effective_sample_size": float(effective_sample_size(weights=factors)),
        "influence__max_weight": float(factors.max()) if len(factors) else 0.0,
    }


class ScoredPlan(NamedTuple):
    """The scores of this rank's rows, and what they took."""

    scored: Scored | None = None
    """None for a rule that reads no scores."""
    gradients: TargetGradients | None = None
    """Of the target; None for scores without gradients."""
    halves_cosine: float | None = None
    """See `health_of`."""
    start: float = 0.0
    """Clock before all."""
    taken: float = 0.0
    """Clock after the target's gradient."""
    spent: float = 0.0
    """Seconds of the target's gradient that went into scores along its groups."""
    num_sampled: int | None = None
    """See `TargetLoss.num_sampled`; None if no gradient was taken."""

    def metrics(self, table: RolloutTable) -> dict[str, float]:
        """Return numbers about the scores of all ranks for `UpdatePlan.record`; none without scores.

        Args:
            table: with the scores of all ranks; the time until now counts.
        """
        if self.scored is None:
            return {}
        now = time.perf_counter()
        # back to the scores' own dtype: float64 was only for the way through the gather
        dtype = self.scored.scores.dtype
        by_parameter = part_fractions(self.scored.by_parameter)
        norm = {} if self.gradients is None else {"influence__gradient_norm": gradient_norm(self.gradients.mean)}
        # a number or None on all ranks alike, because they sample together
        sampled = {} if self.num_sampled is None else {"influence__target_episodes": _over_ranks(self.num_sampled)}
        return {
            # groups are scored while the gradient is taken
            "time__target_gradient_seconds": self.taken - self.start - self.spent,
            "time__scoring_seconds": now - self.taken + self.spent,
            "time__influence_seconds": now - self.start,
            **norm,
            **sampled,
            "influence__nonfinite_episodes": float(table.force_drop.sum()),
            **{f"influence__score_{name}": value for name, value in score_quantiles(table.scores.to(dtype)).items()},
            **{f"influence__part_{name}": value for name, value in by_parameter.items()},
            **health_of(table.group_scores.to(dtype), halves_cosine=self.halves_cosine),
        }


def _over_ranks(count: int) -> float:
    return float(all_reduce_sum(torch.tensor(float(count))))
