"""Rules by groups and by length, against every choice that there is."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import ByLength, DropEqualRewards, MaxRewardVariance, RolloutTable
from ippo_lightning.selection.rules import build_rule, decide
from ippo_lightning.selection.table import gather_table

TIE = 1e-12


def table(**columns: list[float]) -> RolloutTable:
    count = len(next(iter(columns.values())))
    off = torch.zeros(count, dtype=torch.bool)
    return RolloutTable(
        columns={name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()},
        kept=~off,
        force_keep=off,
        force_drop=off,
        group_scores=torch.zeros(0, count),
        mine=slice(0, count),
        iteration=0,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_kept", [1, 2, 3, 5, 9])
def test_the_kept_responses_have_the_largest_variance_of_all_choices(num_kept: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(3, (16,), generator=generator)
    # coarse rewards, so that many are equal
    rewards = torch.randint(5, (16,), generator=generator).double() / 4
    keep = MaxRewardVariance(num_kept=num_kept).keep(table(rewards=rewards.tolist(), groups=groups.tolist()))
    for group in range(3):
        own = rewards[groups == group]
        size = min(num_kept, len(own))
        best = max(float(own[list(rows)].var(unbiased=False)) for rows in itertools.combinations(range(len(own)), size))
        found = own[keep[groups == group]]
        assert len(found) == size
        assert float(found.var(unbiased=False)) == pytest.approx(best, abs=TIE)


def test_dropped_rows_come_back_by_their_distance_from_the_mean_of_their_prompt() -> None:
    columns = table(rewards=[0.0, 0.4, 1.0, 0.5, 3.0, 3.0], groups=[1, 1, 1, 1, 0, 0])
    rule = MaxRewardVariance(num_kept=2)
    assert rule.keep(columns).tolist() == [True, False, True, False, True, True]
    torch.testing.assert_close(rule.ranking(columns)[:2], torch.tensor([0.475, 0.075]).double())
    # row 1 is 0.075 from its mean 0.475, row 3 only 0.025
    assert decide(rule, columns, min_keep=5, max_weight=None).tolist() == [1, 1, 1, 0, 1, 1]


def test_a_prompt_whose_rewards_are_all_equal_is_dropped_as_a_whole() -> None:
    rewards = [0.1 + 0.2, 0.1 + 0.2, 0.3, 0.3, 0.0, 1.0, -7.0]
    keep = DropEqualRewards().keep(table(rewards=rewards, groups=[2, 2, 2, 0, 0, 0, 5]))
    assert keep.tolist() == [True, True, True, True, True, True, True], "0.1 + 0.2 is not 0.3 here"
    rewards = [0.3, 0.3, 0.3, 0.3, 0.0, 1.0, -7.0]
    keep = DropEqualRewards().keep(table(rewards=rewards, groups=[2, 2, 2, 0, 0, 0, 5]))
    assert keep.tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, False, True, False]),
        ({"prefer": "longest"}, [False, True, True, False]),
        ({"fraction": 0.25}, [True, False, False, False]),
        ({"fraction": 0.0}, [False] * 4),
    ],
)
def test_rows_are_kept_by_their_length(changes: dict[str, Any], expected: list[bool]) -> None:
    assert ByLength(**changes).keep(table(lengths=[1, 4, 2, 2])).tolist() == expected


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        (MaxRewardVariance, {"num_kept": 0}, "rule.num_kept: 0 is out of range"),
        (ByLength, {"fraction": 1.5}, "rule.fraction: 1.5 is out of range"),
        (ByLength, {"prefer": "short"}, "rule.prefer: 'short' is unknown"),
    ],
)
def test_a_number_or_word_out_of_its_range_is_named(rule: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rule(**changes)


@pytest.mark.parametrize("rule", [MaxRewardVariance(), DropEqualRewards(), ByLength()])
def test_a_rule_reads_only_what_it_names_and_accepts_a_table_without_rows(rule: Any) -> None:
    from two_ranks_select import rollout

    assert build_rule(rule, threshold=None, power=None, seed=None) is rule
    found = gather_table(UpdatePlan(episodes=rollout([0, 1, 2, 3])), needs=rule.needs, iteration=0)
    assert set(found.columns) == rule.needs
    nothing = found.select(torch.tensor([], dtype=torch.long))
    assert rule.keep(nothing).tolist() == []
    assert rule.ranking(nothing).tolist() == []


@pytest.mark.parametrize(("num_responses", "doubts"), [(4, 1), (2, 1), (5, 0)])
def test_a_rule_that_drops_nothing_is_doubted_once_when_the_run_is_set_up(num_responses: int, doubts: int) -> None:
    callback = InfluenceFilter(rule=MaxRewardVariance(num_kept=4))
    module: Any = SimpleNamespace(sampling=SimpleNamespace(num_responses=num_responses))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback.setup(None, module, "fit")
    assert len(caught) == doubts
    for one in caught:
        expected = f"InfluenceFilter.rule.num_kept: 4, and sampling.num_responses is {num_responses}, so"
        assert str(one.message).startswith(expected)
