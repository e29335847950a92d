"""The filter of IIF drops the lowest part of the negatives; its control drops as many at random."""

from __future__ import annotations

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.selection.negatives import DropNegatives, DropRandom
from ippo_lightning.selection.table import RolloutTable

SCORES = torch.tensor([3.0, -1.0, -4.0, 0.0, -2.0, -3.0, 5.0, -1.0])


def table(iteration: int = 0) -> RolloutTable:
    no_rows = torch.zeros(len(SCORES), dtype=torch.bool)
    return RolloutTable(
        kept=~no_rows,
        iteration=iteration,
        columns={"scores": SCORES.double()},
        group_scores=torch.zeros(0, len(SCORES), dtype=torch.float64),
        force_keep=no_rows,
        force_drop=no_rows,
        mine=slice(0, len(SCORES)),
    )


@pytest.mark.parametrize(
    ("fraction", "dropped"),
    [(0.0, []), (0.19, []), (0.2, [2]), (0.5, [2, 5]), (0.8, [1, 2, 4, 5]), (1.0, [1, 2, 4, 5, 7])],
)
def test_the_lowest_negatives_are_dropped_and_nothing_else(fraction: float, dropped: list[int]) -> None:
    keep = DropNegatives(fraction=fraction).keep(table())
    assert (~keep).nonzero().flatten().tolist() == dropped


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_control_drops_as_many_of_all_rows(fraction: float) -> None:
    rule = DropRandom(fraction=fraction)
    choices = torch.stack([~rule.keep(table(iteration)) for iteration in range(60)])
    assert choices.sum(1).unique().tolist() == [int((~DropNegatives(fraction=fraction).keep(table())).sum())]
    assert bool(choices.any(0).all()) == (fraction > 0)
    assert torch.equal(rule.keep(table()), rule.keep(table()))


def test_a_fraction_above_one_is_one_line() -> None:
    with pytest.raises(UserError, match=r"rule\.fraction: 2 is out of range"):
        DropNegatives(fraction=2)
