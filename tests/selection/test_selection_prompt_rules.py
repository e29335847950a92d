"""Prompt rules against cases computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.selection import (
    IntermediateDifficulty,
    PromptRule,
    PromptTable,
    RandomPrompts,
    SampledRows,
    SourceBandit,
)
from ippo_lightning.selection.prompt_choice import chosen_prompts, keys_of, selected, table_of
from ippo_lightning.selection.prompt_rules import key_number

SAMPLING = 0.04
"""Four standard errors of a fraction over 2000 draws."""
FLOAT64 = 1e-12


def table(
    rule: PromptRule, sources: str, *, num_kept: int, iteration: int = 0, values: list[float] | None = None
) -> PromptTable:
    """A batch with a prompt per letter, which is its source."""
    batch = {
        "prompts": [f"{place}?" for place in range(len(sources))],
        "examples": [{"kind": kind} for kind in sources],
    }
    given = None if values is None else torch.tensor(values)
    return table_of(rule, batch, num_kept=num_kept, seed=0, iteration=iteration, values=given)


def rows(**advantages: list[float]) -> SampledRows:
    keys = [key_number(source) for source, own in advantages.items() for _ in own]
    flat = torch.tensor([one for own in advantages.values() for one in own], dtype=torch.float64)
    return SampledRows(keys=keys, rewards=flat, advantages=flat)


@pytest.mark.parametrize(
    ("target", "expected"), [(0.5, [1, 3, 4]), (1.0, [2, 3, 4]), (0.0, [0, 1, 3])], ids=["half", "easy", "hard"]
)
def test_the_prompts_nearest_to_the_target_are_sampled(target: float, expected: list[int]) -> None:
    rule = IntermediateDifficulty(target=target)
    assert chosen_prompts(rule, table(rule, "aaaaa", num_kept=3, values=[0.1, 0.45, 0.9, 0.5, 0.6])) == expected


def test_of_equal_predictions_the_first_prompts_are_sampled() -> None:
    rule = IntermediateDifficulty()
    assert chosen_prompts(rule, table(rule, "aaaa", num_kept=2, values=[0.75, 0.25, 0.25, 0.75])) == [0, 1]


def test_the_value_of_a_source_is_its_mean_advantage_and_a_bonus_for_few_responses() -> None:
    rule = SourceBandit(source="kind")
    rule.learn(rows(a=[1.0, -0.5, 0.3], b=[-0.2]))
    expected = {"a": 0.6 + math.sqrt(2 * math.log(5) / 4), "b": 0.2 + math.sqrt(2 * math.log(5) / 2)}
    expected["unseen"] = math.sqrt(2 * math.log(5))
    for source, value in expected.items():
        assert rule.value(key_number(source)) == pytest.approx(value, abs=FLOAT64)


def test_the_mean_is_over_the_last_responses_and_the_bonus_over_all() -> None:
    rule = SourceBandit(source="kind", window=2)
    rule.learn(rows(a=[9.0]))
    rule.learn(rows(a=[0.5, -0.3]))
    assert rule.value(key_number("a")) == pytest.approx(0.4 + math.sqrt(2 * math.log(4) / 4), abs=FLOAT64)


def test_sources_whose_groups_have_equal_rewards_are_told_apart_by_their_counts_alone() -> None:
    rule = SourceBandit(source="kind")
    rule.learn(rows(a=[0.0] * 4, b=[0.0]))  # a group baseline gives each response of such a group the advantage 0
    for source, count in (("a", 4), ("b", 1)):
        assert rule.value(key_number(source)) == pytest.approx(math.sqrt(2 * math.log(6) / (count + 1)), abs=FLOAT64)
    drawn = [chosen_prompts(rule, table(rule, "ab", num_kept=1, iteration=iteration)) for iteration in range(20)]
    assert drawn.count([1]) > drawn.count([0]), "the rarer one is worth more"
    assert len(chosen_prompts(rule, table(rule, "abab", num_kept=4))) == 4


def test_sources_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    rule = SourceBandit(source="kind", temperature=0.5)
    rule.learn(rows(a=[0.2] * 4, b=[0.6] * 4, c=[1.0] * 4))
    weights = [math.exp(mean / 0.5) for mean in (0.2, 0.6, 1.0)]
    counts = [0, 0, 0]
    for iteration in range(2000):
        # two prompts of the first source: its probability does not depend on how many prompts it has
        (place,) = chosen_prompts(rule, table(rule, "aabc", num_kept=1, iteration=iteration))
        counts[[0, 0, 1, 2][place]] += 1
    for count, weight in zip(counts, weights, strict=True):
        assert count / 2000 == pytest.approx(weight / sum(weights), abs=SAMPLING)


def test_a_source_without_prompts_left_is_not_drawn_however_valuable_it_is() -> None:
    rule = SourceBandit(source="kind")
    rule.learn(rows(a=[1000.0] * 4, b=[0.0] * 4))  # the probability of b underflows
    assert chosen_prompts(rule, table(rule, "bbabba", num_kept=4)) == [0, 1, 2, 5]


def test_random_prompts_are_others_in_each_iteration_and_the_same_after_a_resume() -> None:
    rule = RandomPrompts()
    chosen = [chosen_prompts(rule, table(rule, "a" * 20, num_kept=5, iteration=iteration)) for iteration in range(8)]
    assert len({tuple(places) for places in chosen}) == len(chosen)
    assert chosen[3] == chosen_prompts(RandomPrompts(), table(rule, "a" * 20, num_kept=5, iteration=3))
    assert all(places == sorted(set(places)) and len(places) == 5 for places in chosen)


def test_a_bandit_goes_on_from_its_state() -> None:
    rule, resumed = SourceBandit(source="kind", window=3), SourceBandit(source="kind", window=3)
    rule.learn(rows(a=[1.0, 0.1, 0.7], b=[0.4]))
    state = rule.state_dict()
    rule.learn(rows(b=[0.9]))
    resumed.load_state_dict(state)
    resumed.learn(rows(b=[0.9]))
    assert resumed == rule
    assert resumed.value(key_number("b")) == rule.value(key_number("b"))


def test_a_batch_of_some_prompts_keeps_its_columns_together() -> None:
    batch = {"prompts": ["a", "b", "c"], "examples": [{"n": 0}, {"n": 1}, {"n": 2}], "size": torch.tensor([5, 6, 7])}
    found = selected(batch, [0, 2])
    assert (found["prompts"], found["examples"]) == (["a", "c"], [{"n": 0}, {"n": 2}])
    assert found["size"].tolist() == [5, 7]


class Returns(PromptRule):
    def __init__(self, found: Any, key: Any = "") -> None:
        self.found, self.text = found, key

    def ranking(self, table: PromptTable) -> Any:
        return self.found

    def key(self, prompt: str, example: Any) -> Any:
        return self.text


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, 2.0], "returned a list; expected a number per prompt"),
        (torch.zeros(3), r"of \(3,\); expected a number per prompt, of shape \(2,\)"),
        (torch.tensor([1.0, torch.nan]), "returned NaN"),
    ],
)
def test_a_rule_that_returns_no_ranking_is_named(found: Any, message: str) -> None:
    rule = Returns(found)
    with pytest.raises(UserError, match=rf"Returns\.ranking: .*{message}"):
        chosen_prompts(rule, table(rule, "ab", num_kept=1))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: IntermediateDifficulty(target=math.nan), r"rule\.target: nan is out of range"),
        (lambda: SourceBandit(source="kind", temperature=0.0), r"rule\.temperature: 0.0 is out of range"),
        (lambda: SourceBandit(source="kind", window=0), r"rule\.window: 0 is out of range"),
        (lambda: keys_of(SourceBandit(source="level"), ["a"], [{"kind": 1}]), r"no 'level'; expected .*: kind"),
        (lambda: keys_of(Returns(None, key=3), ["a"], [{}]), r"Returns\.key: returned a int; expected a text"),
        (lambda: table(RandomPrompts(), "ab", num_kept=1).values, "add 'values' to them"),
    ],
)
def test_what_is_wrong_is_named(action: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        action()
