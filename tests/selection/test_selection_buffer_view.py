"""The view on a foreign buffer: its own mask counts, what is no column is left alone, what is missing is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import AdvantageSign, BufferView
from ippo_lightning.selection.rules import decide
from ippo_lightning.selection.table import gather_table

HOLES = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])


def test_steps_off_the_buffers_own_mask_do_not_count() -> None:
    advantages = torch.tensor([[1.0, -9.0, 1.0], [-1.0, -1.0, 9.0], [-9.0, 2.0, -1.0]])
    view = BufferView({"advantages": advantages, "mask": HOLES})
    rule = AdvantageSign()
    table = gather_table(UpdatePlan(episodes=view), needs=rule.needs, iteration=0)  # type: ignore[arg-type]
    assert table.advantages.tolist() == [1.0, -1.0, 0.5]
    assert decide(rule, table, min_keep=0, max_weight=None).tolist() == [1, 0, 1]


def test_without_a_mask_each_step_counts() -> None:
    view = BufferView({"advantages": torch.ones(2, 3)})
    assert view.mask.tolist() == [[True] * 3] * 2
    assert view.cost().tolist() == [1, 1]


def test_one_advantage_per_row_counts_for_each_of_its_steps() -> None:
    view = BufferView({"advantages": torch.tensor([1.0, -1.0, 2.0]), "mask": HOLES})
    assert view.advantages.tolist() == [[1.0] * 3, [-1.0] * 3, [2.0] * 3]
    with pytest.raises(UserError, match=r"column 'advantages' has shape \[3, 2\]; expected \[3, 3\]"):
        _ = BufferView({"advantages": torch.ones(3, 2), "mask": HOLES}).advantages


def test_a_row_takes_its_steps_up_to_the_last_that_counts_and_is_as_long_as_those_that_count() -> None:
    view = BufferView({"states": torch.zeros(3, 3, 4), "mask": HOLES})
    assert view.cost().tolist() == [3, 2, 3]
    assert view.lengths.tolist() == [2, 2, 2]
    assert BufferView({"states": torch.zeros(2, 1), "lengths": torch.tensor([5, 7])}).cost().tolist() == [5, 7]


def test_rewards_of_steps_are_summed_on_the_mask() -> None:
    assert BufferView({"rewards": torch.ones(3, 3), "mask": HOLES}).outcome_rewards.tolist() == [2, 2, 2]
    assert BufferView({"rewards": torch.tensor([1.0, 2.0])}).outcome_rewards.tolist() == [1, 2]


@pytest.mark.parametrize("rule", ["reward", "advantage_sign"])
def test_a_buffer_of_no_rows_is_named_in_one_line(rule: Any) -> None:
    buffer = {"rewards": torch.zeros(0), "advantages": torch.zeros(0, 3), "weights": torch.zeros(0)}
    with pytest.raises(UserError, match=r"InfluenceFilter.buffer: its columns have 0 rows; expected at least one row"):
        InfluenceFilter(rule=rule).apply(torch.nn.Linear(1, 1), buffer)


def test_a_rank_without_rows_still_has_columns_for_the_others() -> None:
    view = BufferView({"advantages": torch.zeros(0, 3), "rewards": torch.zeros(0), "values": torch.zeros(0, 3)})
    assert view.advantages.shape == view.values.shape == view.mask.shape == (0, 3)
    assert view.outcome_rewards.shape == (0,)


def test_a_selection_is_a_buffer_of_the_same_kind() -> None:
    assert BufferView({"x": torch.arange(3), "name": ["a", "b", "c"]}).select([2, 0])["name"] == ["c", "a"]
    assert [column.tolist() for column in BufferView([torch.arange(3)]).select([1])] == [[1]]


def test_what_is_no_column_is_left_alone() -> None:
    view = BufferView({"x": torch.arange(4), "name": "batch 7", "table": torch.eye(3), "scale": torch.tensor(2.0)})
    view.write(torch.tensor([1.0, 0.0, 0.0, 1.0]), owner=None)
    assert view.raw["x"].tolist() == [0, 3]
    assert len(view) == 2
    assert view.raw["name"] == "batch 7"
    assert view.raw["table"].shape == (3, 3)


@pytest.mark.parametrize("name", ["advantages", "values", "group", "lengths", "outcome_rewards"])
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"needs a column '[a-z]+' of 2 rows in the buffer"):
        getattr(BufferView({"x": torch.zeros(2)}), name)
