"""The filter of IIF, which drops a part of the rows with negative scores, and its control."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ippo_lightning.errors import require_range
from ippo_lightning.maths import keep_random
from ippo_lightning.selection.rules import SelectionRule
from ippo_lightning.selection.table import RolloutTable


@dataclass(frozen=True, kw_only=True)
class DropNegatives(SelectionRule):
    """Drop a fraction of the rows with negative scores, the lowest ones; the others count the same.

    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), section 4. Their released code drops one row less, which is the
    threshold itself.

    Args:
        fraction: of the negative rows, in [0, 1], rounded down to whole rows.

    Raises:
        UserError: the fraction is out of its range.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        require_range("rule.fraction", self.fraction, at_least=0, at_most=1)

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return frozenset({"scores"})

    def num_dropped(self, table: RolloutTable) -> int:
        """Return how many rows are dropped."""
        return math.floor(self.fraction * int((table.scores < 0).sum()))

    def keep(self, table: RolloutTable) -> Tensor:
        """Return all rows but the lowest; of equal scores, the first rows are dropped."""
        keep = torch.ones(len(table), dtype=torch.bool, device=table.scores.device)
        keep[table.scores.argsort(stable=True)[: self.num_dropped(table)]] = False
        return keep


@dataclass(frozen=True, kw_only=True)
class DropRandom(DropNegatives):
    """Drop random rows, as many as `DropNegatives` would: the control that shows whether the scores matter.

    Args:
        fraction: see `DropNegatives`.
        seed: of the draws; each iteration draws again.

    Raises:
        UserError: the fraction is out of its range.
    """

    seed: int = 0

    def keep(self, table: RolloutTable) -> Tensor:
        """Return a random choice."""
        # As in `Random`: a generator of its own, equal on all ranks, and another one in each iteration and part.
        seed = self.seed * 1_000_003 + table.iteration + 1_000_000_007 * table.part
        generator = torch.Generator().manual_seed(seed)
        num_kept = len(table) - self.num_dropped(table)
        return keep_random(num_episodes=len(table), num_kept=num_kept, generator=generator).to(table.scores.device)
