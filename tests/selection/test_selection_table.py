"""The table: columns by need, over the rows of all ranks, with groups that two ranks do not share."""

from __future__ import annotations

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import table as tables
from ippo_lightning.selection.table import RolloutTable, gather_table


def gathered(**settings: object) -> RolloutTable:
    plan = UpdatePlan(episodes=make_episodes([2, 2, 2, 2], [3, 1, 2, 4]))
    return gather_table(plan, iteration=0, **settings)  # type: ignore[arg-type]


def test_columns_are_those_that_are_needed() -> None:
    table = gathered(needs=frozenset({"rewards", "groups"}))
    assert table.rewards.tolist() == [0, 0.5, 1, 1.5]
    assert table.groups.tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match=r"it reads table.advantages, which is not in its needs; add 'advantages'"):
        _ = table.advantages


def test_advantages_and_values_are_means_over_a_mask_with_holes() -> None:
    episodes = make_episodes([1, 1], [3, 3])
    mask = torch.tensor([[True, False, True], [False, True, True]])
    numbers = torch.tensor([[1.0, 50.0, 3.0], [50.0, 4.0, 6.0]])
    plan = UpdatePlan(episodes=episodes.evolve(mask=mask, advantages=numbers, values=-numbers))
    table = gather_table(plan, needs=frozenset({"advantages", "values"}), iteration=0)
    assert table.advantages.tolist() == [2, 5]
    assert table.values.tolist() == [-2, -5]


@pytest.mark.parametrize("how", ["dropped by another", "without a score"])
def test_nan_in_a_row_that_the_rule_does_not_see_is_no_mistake(how: str) -> None:
    episodes = make_episodes([2, 2], [1, 1])
    plan = UpdatePlan(episodes=episodes.evolve(outcome_rewards=torch.tensor([torch.nan, 1.0])))
    first, needs = torch.tensor([True, False]), frozenset({"rewards"})
    with pytest.raises(FloatingPointError, match="NaN or infinity in the rewards of row 0"):
        gather_table(plan, needs=needs, iteration=0)
    if how == "dropped by another":
        plan.drop(first, reason="another")
    table = gather_table(plan, needs=needs, iteration=0, force_drop=first if how == "without a score" else None)
    assert table.rewards[1:].tolist() == [1]


def test_groups_of_two_ranks_with_one_number_stay_two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "rank", lambda: 1)

    def with_another_rank(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
        other = rows.clone()
        other[:, -1] = torch.where(other[:, -1] == 1, 0.0, other[:, -1])  # the column `rank` is the last
        return torch.cat([other, rows]), slice(len(rows), 2 * len(rows))

    monkeypatch.setattr(tables, "gather_rows", with_another_rank)
    table = gathered(needs=frozenset({"groups"}))
    assert table.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table.mine == slice(4, 8)


def test_a_selected_table_has_the_chosen_rows_in_each_column() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    table = gathered(
        needs=frozenset({"rewards"}),
        scores=scores,
        group_scores=torch.stack([scores, -scores]),
        force_drop=torch.tensor([True, False, False, False]),
    ).select(torch.tensor([3, 0]))
    assert table.scores.tolist() == [4, 1]
    assert table.rewards.tolist() == [1.5, 0]
    assert table.group_scores.tolist() == [[4, 1], [-4, -1]]
    assert table.force_drop.tolist() == [False, True]
    assert len(table) == 2
