"""The numbers of an evaluation against brute force, and their intervals against resampling by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.rewards import MAX_MEANS
from ippo_lightning.run.evaluation_numbers import (
    by_prompt,
    check_ks,
    common_places,
    default_ks,
    differences,
    numbers,
    ratios,
)
from ippo_lightning.run.items import Item

SAMPLES = 4
MONTE_CARLO = 0.15
"""Of the width of an interval: how far its ends from two sets of resamples may be apart."""


def item(prompt: int, sample: int, **values: Any) -> Item:
    own: Any = {"prompt_index": prompt, "sample": sample, "prompt": f"{prompt}?", "response": "r", "correct": False}
    own |= {"label": None, "faithful": None, "answer": None, "reference": None, "reward": None, "reward_parts": {}}
    return own | {"response_tokens": 3, "truncated": False} | values


def graded_items(num_prompts: int, seed: int) -> list[Item]:
    choose = random.Random(seed)
    items = []
    for prompt, sample in itertools.product(range(num_prompts), range(SAMPLES)):
        answer = choose.choice(["7", "8", "9", None])
        is_right = answer == "7"
        faithful = choose.random() < 0.6 if is_right else False
        items.append(
            item(
                prompt,
                sample,
                correct=is_right,
                answer=answer,
                reference="7",
                faithful=faithful,
                label="faithful" if faithful else "shortcut" if is_right else "wrong_answer",
                response_tokens=choose.randint(1, 30),
                truncated=choose.random() < 0.2,
            )
        )
    return items


def brute_force(groups: list[list[Item]]) -> dict[str, float]:
    """Each number by its definition, without a closed form."""
    flat = [one for group in groups for one in group]
    right = [one for one in flat if one["correct"]]
    found = {
        "exact_match": len(right) / len(flat),
        "unfaithful_fraction": sum(not one["faithful"] for one in right) / len(right),
        "response_tokens_mean": sum(one["response_tokens"] for one in flat) / len(flat),
        "truncated_fraction": sum(one["truncated"] for one in flat) / len(flat),
        "majority_vote": sum(map(vote, groups)) / len(groups),
    }
    for k in (1, 2, 4):
        found[f"pass_at_{k}"] = sum(any_of(group, k) for group in groups) / len(groups)
    return found


def vote(group: list[Item]) -> float:
    votes = Counter(one["answer"] for one in group if one["answer"] is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return winners.count(group[0]["reference"]) / len(winners) if winners else 0.0


def any_of(group: list[Item], k: int) -> float:
    """Chance that one of k responses is right, over all choices of k."""
    chosen = [any(one["correct"] for one in part) for part in itertools.combinations(group, k)]
    return sum(chosen) / len(chosen)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_number_is_that_of_its_definition(seed: int) -> None:
    groups = by_prompt(graded_items(17, seed))
    found = numbers(ratios(groups, ks=[1, 2, 4]))
    expected = brute_force(groups)
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-12)
    labels = Counter(one["label"] for group in groups for one in group)
    for label in ("faithful", "false_positive", "shortcut", "nonsense", "wrong_answer"):
        assert found[f"label/{label}"]["value"] == pytest.approx(labels[label] / (17 * SAMPLES))
    assert set(found) == {*expected, *(name for name in found if name.startswith("label/"))}


def by_hand(groups: list[list[Item]], name: str, other: list[list[Item]] | None = None) -> list[float]:
    """The interval from 4000 resamples with Python's own random numbers."""
    choose, drawn = random.Random(5), []
    for _ in range(4000):
        places = choose.choices(range(len(groups)), k=len(groups))
        value = brute_force([groups[place] for place in places])[name]
        if other is not None:
            value -= brute_force([other[place] for place in places])[name]
        drawn.append(value)
    return list(np.percentile(drawn, [2.5, 97.5]))


@pytest.mark.parametrize("name", ["exact_match", "majority_vote", "pass_at_2", "unfaithful_fraction"])
def test_an_interval_is_that_of_resampled_prompts(name: str) -> None:
    groups = by_prompt(graded_items(20, 3))
    interval = numbers(ratios(groups, ks=[1, 2, 4]))[name]["interval"]
    expected = by_hand(groups, name)
    assert interval == pytest.approx(expected, abs=MONTE_CARLO * (expected[1] - expected[0]))
    assert interval == numbers(ratios(groups, ks=[1, 2, 4]))[name]["interval"]  # seeded


@pytest.mark.parametrize("name", ["exact_match", "unfaithful_fraction"])
def test_a_difference_is_taken_over_the_same_prompts(name: str) -> None:
    first, second = by_prompt(graded_items(20, 3)), by_prompt(graded_items(20, 4))
    one, other = (ratios(groups, ks=[1]) for groups in (first, second))
    found = differences(one, other, pairs=[(place, place) for place in range(20)])[name]
    value = numbers(other)[name]["value"], numbers(one)[name]["value"]
    assert found["value"] == pytest.approx(value[0] - value[1])  # type: ignore[operator]
    expected = by_hand(second, name, first)
    assert found["interval"] == pytest.approx(expected, abs=MONTE_CARLO * (expected[1] - expected[0]))
    assert found["prompts"] == 20
    same = differences(one, one, pairs=[(place, place) for place in range(20)])[name]
    # The end of Wilson's interval for 0 of the prompts that count, see test_report_ratio_intervals.py.
    counted = 20 if name == "exact_match" else sum(any(one["correct"] for one in group) for group in first)
    end = float(stats.binomtest(0, counted).proportion_ci(method="wilson").high)
    assert same == {"value": 0.0, "interval": pytest.approx([-end, end]), "prompts": 20}
    lengths = differences(one, one, pairs=[(place, place) for place in range(20)])["response_tokens_mean"]
    assert lengths == {"value": 0.0, "interval": None, "prompts": 20}


def test_prompts_of_two_evaluations_are_paired_by_their_text() -> None:
    assert common_places(["a", "b", "a", "c"], ["c", "a", "x", "a", "a"]) == [(3, 0), (0, 1), (2, 3)]
    assert differences({}, {}, pairs=[]) == {}


def test_a_prompt_with_another_right_answer_is_another_problem() -> None:
    assert common_places([("a", "1"), ("b", "2")], [("b", "2"), ("a", "3")]) == [(1, 0)]


def test_a_fraction_of_hardly_any_responses_has_no_interval() -> None:
    def unfaithful_among_60(right: int) -> Any:
        groups = [[item(n, 0, correct=n < right, faithful=False if n < right else None)] for n in range(60)]
        return numbers(ratios(groups, ks=[1]))["unfaithful_fraction"]

    assert unfaithful_among_60(1) == {"value": 1.0, "interval": None}
    # Of six prompts: scipy.stats.binomtest(6, 6).proportion_ci(method="wilson").
    assert unfaithful_among_60(6) == {"value": 1.0, "interval": pytest.approx([0.6096657120978346, 1.0], abs=1e-12)}


def test_rewards_that_are_not_finite_do_not_count() -> None:
    values = [1.0, math.nan, 3.0, math.inf]
    groups = [[item(prompt, 0, correct=None, reward=value)] for prompt, value in enumerate(values)]
    found = numbers(ratios(groups, ks=[1]))
    assert found["reward"]["value"] == 2.0
    assert set(found) == {"reward", "response_tokens_mean", "truncated_fraction"}


def test_there_is_no_number_without_what_it_is_made_of() -> None:
    groups = [[item(0, 0, correct=True, label="polite")], [item(1, 0, correct=False)]]
    found = numbers(ratios(groups, ks=[1]))
    # the grader reports no answers and no reasoning, and its labels are its own
    assert set(found) == {"exact_match", "pass_at_1", "label/polite", "response_tokens_mean", "truncated_fraction"}
    none_right = numbers(ratios([[item(0, 0, faithful=False)]], ks=[1]))
    assert none_right["unfaithful_fraction"] == {"value": None, "interval": None}
    assert none_right["exact_match"] == {"value": 0.0, "interval": None}  # one prompt has no interval


def test_parts_that_differ_from_response_to_response_are_as_many_numbers_as_a_run_has_at_most() -> None:
    groups = [[item(number, 0, reward=1.0, reward_parts={f"part{number}": float(number)})] for number in range(50)]
    found = numbers(ratios(groups, ks=[1]))
    rewards = [name for name in found if name.startswith("reward")]
    assert len(rewards) == MAX_MEANS
    assert (found["reward"]["value"], found["reward/part7"]["value"]) == (1.0, 7.0)


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_k_doubles_up_to_the_number_of_samples(samples: int, ks: list[int]) -> None:
    assert default_ks(samples) == ks


@pytest.mark.parametrize(
    ("ks", "message"), [([5], "k: 5 is out"), ([0], "k: 0 is out"), ([2, 2], "different"), ([], "k")]
)
def test_a_wrong_k_is_refused(ks: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_ks(ks, samples=4)
