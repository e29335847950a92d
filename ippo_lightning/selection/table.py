"""What a rule decides from: one row per episode of all ranks, and only the columns that the rule needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import gather_rows, rank
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import UpdatePlan

# functions, because the buffer of a foreign project may lack the columns that a rule does not need
_READ: Mapping[str, Callable[[Any], Tensor]] = {
    "rewards": lambda episodes: episodes.outcome_rewards,
    "advantages": lambda episodes: masked_row_mean(values=episodes.advantages, mask=episodes.mask),
    "values": lambda episodes: masked_row_mean(values=episodes.values, mask=episodes.mask),
    "groups": lambda episodes: episodes.group,
    "lengths": lambda episodes: episodes.lengths,
}
NEEDS = frozenset({"scores", *_READ})
"""What a rule may need: the names of a table's columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTable:
    """The rows of all ranks, in the order of the ranks, so that each rank decides what one process would decide.

    A column that the rule does not need is not computed, and reading it raises an error that names it.
    """

    columns: Mapping[str, Tensor]
    """Name to column, shape [rows], float64; by the rule's `needs`."""
    kept: Tensor
    """[rows] bool, False for rows that another callback has dropped. A rule sees no such row."""
    force_keep: Tensor
    """[rows] bool, True for rows that are kept whatever the rule decides."""
    force_drop: Tensor
    """[rows] bool, True for rows that are dropped whatever the rule decides: those without a finite score."""
    group_scores: Tensor
    """[groups, rows] float64, scores along the gradient of each group of demonstrations; may have zero groups."""
    mine: slice
    """The slice of this rank's rows."""
    iteration: int
    """Counted from 0."""
    part: int = 0
    """Number of the micro-batch in its optimizer step, counted from 0."""

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def scores(self) -> Tensor:
        """[rows] influence scores."""
        return self._column("scores")

    @property
    def rewards(self) -> Tensor:
        """[rows] outcome rewards."""
        return self._column("rewards")

    @property
    def advantages(self) -> Tensor:
        """[rows] mean advantage over the steps that count."""
        return self._column("advantages")

    @property
    def values(self) -> Tensor:
        """[rows] mean value over the steps that count."""
        return self._column("values")

    @property
    def lengths(self) -> Tensor:
        """[rows] number of steps that count."""
        return self._column("lengths")

    @property
    def groups(self) -> Tensor:
        """[rows] int64, equal for the responses to one prompt; unique over ranks."""
        return self._column("groups").long()

    def has(self, name: str) -> bool:
        """Return whether a column is there."""
        return name in self.columns

    def select(self, rows: Tensor) -> RolloutTable:
        """Return the table of some rows.

        Args:
            rows: positions, shape [chosen], int64.
        """
        return replace(
            self,
            columns={name: column[rows] for name, column in self.columns.items()},
            kept=self.kept[rows],
            force_keep=self.force_keep[rows],
            force_drop=self.force_drop[rows],
            group_scores=self.group_scores[:, rows],
            mine=slice(0, len(rows)),  # a part of the table belongs to no rank
        )

    def _column(self, name: str) -> Tensor:
        if name not in self.columns:
            raise UserError(f"rule: it reads table.{name}, which is not in its needs; add '{name}' to them")
        return self.columns[name]


def gather_table(
    plan: UpdatePlan,
    *,
    needs: frozenset[str],
    iteration: int,
    part: int = 0,
    scores: Tensor | None = None,
    group_scores: Tensor | None = None,
    force_keep: Tensor | None = None,
    force_drop: Tensor | None = None,
) -> RolloutTable:
    """Gather the columns that a rule needs over all ranks, in one collective.

    Args:
        plan: of this rank's rows.
        needs: names from `NEEDS`.
        iteration: counted from 0.
        part: number of the micro-batch in its optimizer step.
        scores: of this rank, shape [rows]; needed if `needs` contains "scores".
        group_scores: of this rank, shape [groups, rows].
        force_keep: of this rank, shape [rows], bool.
        force_drop: of this rank, shape [rows], bool.

    Raises:
        FloatingPointError: a column has NaN or infinity in a row that may still be kept.
    """
    zeros = torch.zeros(len(plan.weights), device=plan.weights.device)
    local = {
        "kept": plan.keep,
        "force_keep": zeros if force_keep is None else force_keep,
        "force_drop": zeros if force_drop is None else force_drop,
        **({} if scores is None else {"scores": scores}),
        **{name: _READ[name](plan.episodes) for name in sorted(needs & _READ.keys())},
    }
    # columns are sorted above, so that each rank stacks them in the same order
    if "groups" in needs:
        local["rank"] = zeros + rank()
    # NCCL gathers only what lies on the GPU; scores are there even if the episodes are not
    device = zeros.device if scores is None else scores.device
    # float64 represents each float32 and each group number exactly
    columns = [
        column.to(device).double() for column in [*local.values(), *(() if group_scores is None else group_scores)]
    ]
    rows, mine = gather_rows(torch.stack(columns, dim=1))
    # not strict, because the scores of groups are the last columns and have no names
    everyone = dict(zip(local, rows.unbind(dim=1), strict=False))
    is_open = (everyone["kept"] > 0) & (everyone["force_drop"] <= 0)  # the rule sees no other row
    for name in sorted(needs & _READ.keys()):
        # NaN compares as False, so a rule would drop such rows without a word; after the gather all ranks raise alike
        broken = (is_open & ~everyone[name].isfinite()).nonzero().flatten()
        if len(broken):
            raise FloatingPointError(f"InfluenceFilter: NaN or infinity in the {name} of row {int(broken[0])}")
    if "groups" in needs:
        everyone["groups"] = _unique(everyone["groups"], everyone.pop("rank"))
    return RolloutTable(
        columns={name: column for name, column in everyone.items() if name in NEEDS},
        kept=everyone["kept"] > 0,
        force_keep=everyone["force_keep"] > 0,
        force_drop=everyone["force_drop"] > 0,
        group_scores=rows[:, len(local) :].T,
        mine=mine,
        iteration=iteration,
        part=part,
    )


def _unique(groups: Tensor, ranks: Tensor) -> Tensor:
    """Number the pairs of rank and group: each rank numbers its own groups from 0, and their prompts differ."""
    pairs = torch.stack([ranks, groups], dim=1)
    return torch.unique(pairs, dim=0, return_inverse=True)[1].to(groups)
