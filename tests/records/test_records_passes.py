"""Passes: each row in one of them, little padding, and never more than the limits allow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.records import cut_rows, passes

COSTS = st.lists(st.integers(0, 20), max_size=12)


@given(costs=COSTS, max_rows=st.integers(1, 5), max_tokens=st.integers(1, 40), sort=st.booleans())
def test_each_row_is_in_one_part_and_no_part_exceeds_the_limits(
    costs: list[int], max_rows: int, max_tokens: int, sort: bool
) -> None:
    parts = cut_rows(torch.tensor(costs, dtype=torch.long), max_rows=max_rows, max_tokens=max_tokens, sort=sort)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(costs)))
    for part in parts:
        taken = [costs[row] for row in part.tolist()]
        assert len(taken) <= max_rows
        assert len(taken) == 1 or len(taken) * max(taken) <= max_tokens


@given(costs=COSTS, max_rows=st.integers(1, 5))
def test_parts_by_rows_are_those_of_a_stable_sort(costs: list[int], max_rows: int) -> None:
    expected = sorted(range(len(costs)), key=lambda row: costs[row])
    found = [part.tolist() for part in cut_rows(torch.tensor(costs, dtype=torch.long), max_rows=max_rows)]
    assert found == [expected[start : start + max_rows] for start in range(0, len(costs), max_rows)]


def test_without_sorting_rows_keep_their_order() -> None:
    parts = cut_rows(torch.tensor([9, 1, 5]), max_rows=2, sort=False)
    assert [part.tolist() for part in parts] == [[0, 1], [2]]


def test_a_large_row_is_counted_also_where_a_smaller_one_follows_it() -> None:
    parts = cut_rows(torch.tensor([5, 1, 1]), max_tokens=9, sort=False)
    assert [part.tolist() for part in parts] == [[0], [1, 2]]


def test_the_first_part_can_be_kept_small() -> None:
    parts = cut_rows(torch.full((9,), 2), max_tokens=10, first_rows=2)
    assert [len(part) for part in parts] == [2, 5, 2]


@pytest.mark.parametrize("module", [None, torch.nn.Linear(2, 2)], ids=["no module", "a module that is not sharded"])
def test_one_rank_makes_each_pass_once_and_knows_the_last(module: torch.nn.Module | None) -> None:
    found = list(passes(torch.tensor([3, 1, 2]), module=module, max_rows=2))
    assert [(one.rows.tolist(), one.is_real, one.is_last) for one in found] == [
        ([1, 2], True, False),
        ([0], True, True),
    ]
