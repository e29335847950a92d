"""Tables that rules decide from, and what becomes of their rows."""

from __future__ import annotations

from typing import Any

import torch

from ippo_lightning.selection import RolloutTable, SelectionRule
from ippo_lightning.selection.rules import decide


def make_table(*, kept: list[bool] | None = None, force_drop: list[bool] | None = None, **columns: Any) -> RolloutTable:
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    count = len(next(iter(columns.values())))
    no_row = torch.zeros(count, dtype=torch.bool)
    return RolloutTable(
        columns=columns,
        kept=torch.ones(count, dtype=torch.bool) if kept is None else torch.tensor(kept),
        force_keep=no_row,
        force_drop=no_row if force_drop is None else torch.tensor(force_drop),
        group_scores=torch.zeros(0, count),
        mine=slice(0, count),
        iteration=0,
    )


def factors(rule: SelectionRule, table: RolloutTable, **settings: Any) -> list[float]:
    return decide(rule, table, **{"min_keep": 0, "max_weight": None, **settings}).tolist()
