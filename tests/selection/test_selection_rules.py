"""Rules: each keeps what it promises, sees only what it needs, and a rule of the user's own needs two things."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rule_tables import factors, make_table
from torch import Tensor

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.selection import AboveMeanReward, AdvantageSign, Influence, Random, RolloutTable, SelectionRule
from ippo_lightning.selection.rules import build_rule

EXAMPLES = Path(__file__).parents[2] / "examples"
SCORES = [3.0, -1.0, 1.0, 0.0, 2.0, -2.0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Influence(), [1.5, 0, 0.5, 0, 1, 0]),
        (Influence(power=0), [1, 0, 1, 0, 1, 0]),
        (Influence(threshold=1.0, power=0), [1, 0, 0, 0, 1, 0]),
        (Influence(power=2), [27 / 14, 0, 3 / 14, 0, 12 / 14, 0]),
    ],
    ids=["paper", "filter only", "threshold", "power"],
)
def test_influence_keeps_what_is_above_the_threshold(rule: SelectionRule, expected: list[float]) -> None:
    assert factors(rule, make_table(scores=SCORES)) == pytest.approx(expected)


def test_rewards_are_compared_with_their_mean() -> None:
    assert factors(AboveMeanReward(), make_table(rewards=[0.0, 4.0, 1.0, 3.0])) == [0, 1, 0, 1]


def test_advantages_are_compared_with_zero() -> None:
    assert factors(AdvantageSign(), make_table(advantages=[0.1, 0.0, -0.1])) == [1, 0, 0]


def test_random_keeps_as_many_as_influence_would_or_a_fraction() -> None:
    assert sum(factors(Random(), make_table(scores=SCORES))) == 3
    assert sum(factors(Random(fraction=0.25), make_table(rewards=[0.0] * 8))) == 2
    assert Random().needs == {"scores"}
    assert not Random(fraction=0.25).needs


@pytest.mark.parametrize("kept", [[True, False, True, True], [True, True, True, False]], ids=["one", "another"])
def test_a_row_that_another_callback_dropped_is_not_in_the_mean_and_stays_out(kept: list[bool]) -> None:
    rewards = torch.tensor([0.0, 100.0, 1.0, 3.0], dtype=torch.float64)
    found = factors(AboveMeanReward(), make_table(rewards=rewards.tolist(), kept=kept))
    mean = rewards[torch.tensor(kept)].mean()
    assert found == [float(keep and reward > mean) for keep, reward in zip(kept, rewards.tolist(), strict=True)]


def test_weights_have_mean_one_over_what_is_kept_in_the_end() -> None:
    found = factors(Influence(), make_table(scores=SCORES, kept=[True, True, False, True, True, True]))
    assert found == pytest.approx([1.2, 0, 0, 0, 0.8, 0])


def test_a_row_without_a_finite_score_never_comes_back() -> None:
    table = make_table(scores=[0.0, 2.0, -1.0], force_drop=[True, False, False])
    assert factors(Influence(threshold=-0.5, power=0), table, min_keep=2) == [0, 1, 1]


def test_the_best_of_the_dropped_come_back_by_the_rules_own_ranking() -> None:
    assert factors(AboveMeanReward(), make_table(rewards=[0.0, 1.0, 2.0, 9.0]), min_keep=2) == [0, 0, 1, 1]
    assert factors(AdvantageSign(), make_table(advantages=[-3.0, -1.0, -2.0]), min_keep=1) == [0, 1, 0]


def test_nothing_left_is_nothing_kept() -> None:
    assert factors(Influence(), make_table(scores=[1.0, 2.0], kept=[False, False]), min_keep=1) == [0, 0]


class Greedy(SelectionRule):
    def keep(self, table: RolloutTable) -> Tensor:
        return table.rewards > 0


class Returns(SelectionRule):
    def __init__(self, result: Any, weights: Any = None) -> None:
        self.result, self.raw = result, weights

    def keep(self, table: RolloutTable) -> Tensor:
        return self.result

    def weights(self, table: RolloutTable, keep: Tensor) -> Tensor:
        return super().weights(table, keep) if self.raw is None else self.raw


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Greedy(), "rule: it reads table.rewards, which is not in its needs"),
        (Returns([True]), r"Returns.keep: returned a list; expected a mask of bool of shape \(6,\)"),
        (Returns(torch.ones(6)), r"Returns.keep: returned torch.float32 of shape \(6,\)"),
        (Returns(torch.ones(2, dtype=torch.bool)), r"shape \(2,\); expected a mask of bool of shape \(6,\)"),
        (Returns(torch.ones(6) > 0, -torch.ones(6)), "Returns.weights: returned a negative weight"),
    ],
    ids=["needs", "list", "float", "shape", "negative"],
)
def test_a_mistake_in_a_rule_is_named_in_one_line(rule: SelectionRule, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        factors(rule, make_table(scores=SCORES))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("influence", Influence(threshold=0.5, power=2.0)),
        ("random", Random(seed=7, threshold=0.5)),
        ("advantage_sign", AdvantageSign()),
        ("reward", AboveMeanReward()),
    ],
    ids=str,
)
def test_a_short_name_is_configured_by_the_filters_numbers(rule: Any, expected: SelectionRule) -> None:
    assert build_rule(rule, threshold=0.5, power=2.0, seed=7) == expected


def test_a_number_beside_an_object_belongs_to_the_object() -> None:
    with pytest.raises(UserError, match=r"InfluenceFilter.power: 2 is for a rule with a short name; pass it to Influ"):
        build_rule(Influence(), threshold=None, power=2.0, seed=None)


def test_needs_that_are_no_set_are_refused() -> None:
    class Listed(Greedy):
        needs = ["rewards"]  # noqa: RUF012

    with pytest.raises(UserError, match=r"Listed.needs: got \['rewards'\]; expected a frozenset of names"):
        build_rule(Listed(), threshold=None, power=None, seed=None)  # type: ignore[arg-type]


def test_kept_rows_that_weigh_nothing_do_not_count_for_min_keep() -> None:
    class Weightless(Influence):
        def weights(self, table: RolloutTable, keep: Tensor) -> Tensor:
            return torch.zeros(len(table))

    with pytest.raises(UserError, match=r"Weightless.weights: 0 for rows that min_keep: 2 keeps"):
        factors(Weightless(), make_table(scores=SCORES), min_keep=2)


class Ranked(SelectionRule):
    """Drop each row; `min_keep` brings rows back by a ranking."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def keep(self, table: RolloutTable) -> Tensor:
        return torch.zeros(len(table), dtype=torch.bool)

    def ranking(self, table: RolloutTable) -> Tensor:
        return self.result


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([1.0] * 6, r"Ranked.ranking: returned a list; expected a number per row, of shape \(6,\)"),
        (torch.ones(3), r"Ranked.ranking: returned torch.float32 of shape \(3,\); expected a number per row"),
        (torch.full((6,), torch.nan), "Ranked.ranking: returned NaN; expected a number per row"),
    ],
    ids=["list", "shape", "nan"],
)
def test_a_mistake_in_a_ranking_is_named_in_one_line(result: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        factors(Ranked(result), make_table(scores=SCORES), min_keep=2)
    assert "\n" not in str(raised.value)


def test_a_ranking_may_be_of_integers() -> None:
    assert factors(Ranked(torch.arange(6)), make_table(scores=SCORES), min_keep=2) == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("field", ["on_empty", "drop_when", "on_nonfinite"])
def test_a_misspelt_word_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"InfluenceFilter\.{field}: 'typo' is unknown; expected one of"):
        InfluenceFilter(**{field: "typo"})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["method", "normalise"])
def test_a_misspelt_word_of_the_scoring_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"InfluenceFilter\.scoring\.{field}: 'typo' is unknown; expected one of"):
        ScoringSettings(**{field: "typo"})  # type: ignore[arg-type]


def test_a_number_that_is_nan_is_named_and_not_dropped() -> None:
    buffer = {"x": torch.randn(4, 3), "rewards": torch.tensor([1.0, 2.0, float("nan"), 0.0]), "weights": torch.ones(4)}
    with pytest.raises(FloatingPointError, match="NaN or infinity in the rewards of row 2"):
        InfluenceFilter(rule="reward").apply(torch.nn.Linear(3, 1), buffer)


def test_a_need_that_no_table_has_is_named() -> None:
    class Curious(Greedy):
        needs = frozenset({"mood"})

    with pytest.raises(UserError, match=r"Curious.needs: 'mood' is unknown; expected names from advantages, groups"):
        build_rule(Curious(), threshold=None, power=None, seed=None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Influence(power=-1), "rule.power: -1 is out of range"),
        (lambda: Influence(threshold=float("nan")), "rule.threshold: nan is out of range"),
        (lambda: Random(fraction=1.5), "rule.fraction: 1.5 is out of range"),
    ],
    ids=["power", "threshold", "fraction"],
)
def test_a_number_out_of_its_range_is_named(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_a_rule_of_ones_own_takes_at_most_twelve_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse((EXAMPLES / "own_rule.py").read_text(encoding="utf-8"))
    rule = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    assert rule.end_lineno is not None
    assert rule.end_lineno - rule.lineno + 1 <= 12
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "own_rule", raising=False)
    from own_rule import BestOfGroup

    table = make_table(rewards=[1.0, 2.0, 5.0, 4.0, 0.0], groups=[0, 0, 1, 1, 2])
    assert factors(BestOfGroup(), table) == [0, 1, 1, 0, 1]
