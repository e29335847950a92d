"""Exact match, pass@k, majority vote and unfaithful fraction against counting by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import (
    ExactMatch,
    MajorityVote,
    PassAtK,
    UnfaithfulFraction,
    majority_vote,
    pass_at_k,
)

SINGLE_PRECISION = 1e-6  # the states are float32


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_fraction_of_all_choices_of_k_samples_that_contain_a_right_one(num_samples: int, data) -> None:
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    samples = [True] * num_correct + [False] * (num_samples - num_correct)
    choices = list(itertools.combinations(samples, k))
    expected = sum(map(any, choices)) / len(choices)
    assert pass_at_k(num_samples=num_samples, num_correct=num_correct, k=k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_several_prompts_is_their_mean() -> None:
    metric = PassAtK(2)
    metric.update(torch.tensor([[True, False, False, False], [False] * 4]))
    metric.update(torch.tensor([[True] * 4]))
    assert float(metric.compute()) == pytest.approx((0.5 + 0.0 + 1.0) / 3, abs=SINGLE_PRECISION)


def test_pass_at_1_is_exact_match() -> None:
    correct = torch.rand(20, 5) < 0.4
    first, second = PassAtK(1), ExactMatch()
    first.update(correct)
    second.update(correct)
    assert float(first.compute()) == pytest.approx(float(second.compute()), abs=SINGLE_PRECISION)
    assert float(second.compute()) == pytest.approx(int(correct.sum()) / 100, abs=SINGLE_PRECISION)


def test_fewer_samples_than_k_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"k = 3 with 2 samples per prompt"):
        PassAtK(3).update(torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(UserError, match=r"metrics\.k: 0 is out of range"):
        PassAtK(0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["1", "1", "2"], 1.0),
        (["2", "2", "1"], 0.0),
        (["1", "2"], 0.5),
        (["1", "2", "3"], 1 / 3),
        (["2", "3"], 0.0),
        (["1", "1", "2", "2", "3"], 0.5),
        (["1", None, None, None], 1.0),
        ([None, None, "2"], 0.0),
        ([None, None], 0.0),
        ([], 0.0),
    ],
)
def test_the_majority_votes(answers: list[str | None], expected: float) -> None:
    assert majority_vote(answers=answers, reference="1") == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=6))
def test_a_tie_is_worth_what_a_draw_among_the_winners_is_worth_on_average(answers: list[str | None]) -> None:
    votes = [answer for answer in answers if answer is not None]
    most = max((votes.count(answer) for answer in votes), default=0)
    winners = sorted({answer for answer in votes if votes.count(answer) == most})
    expected = sum(winner == "1" for winner in winners) / len(winners) if winners else 0.0
    assert majority_vote(answers=answers, reference="1") == pytest.approx(expected, abs=1e-12)


def test_the_order_of_the_votes_does_not_matter() -> None:
    for answers in itertools.permutations(["1", "1", "2", "2", None]):
        assert majority_vote(answers=answers, reference="1") == 0.5


def test_as_many_references_as_prompts_are_needed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        MajorityVote().update([["1"], ["2"]], ["1"])


def test_the_unfaithful_fraction_counts_right_answers_only() -> None:
    metric = UnfaithfulFraction()
    metric.update(torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False], [False, False]]))
    metric.update(torch.tensor([True, False]), torch.tensor([True, True]))
    assert float(metric.compute()) == 0.5


def test_a_prompt_without_a_reference_is_left_out_of_the_vote() -> None:
    metric = MajorityVote()
    metric.update([["1", "1"], ["2", "2"], ["3"]], ["1", None, "4"])
    assert float(metric.compute()) == 0.5


def test_a_grader_that_reports_no_answers_has_no_vote() -> None:
    metric = MajorityVote()
    metric.update([["1"]], ["1"])
    metric.update([[None]], ["1"], num_unreported=1)
    assert math.isnan(float(metric.compute()))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    "metric", [ExactMatch(), PassAtK(1), MajorityVote(), UnfaithfulFraction()], ids=lambda m: type(m).__name__
)
def test_nothing_seen_is_nan(metric) -> None:
    assert math.isnan(float(metric.compute()))


def test_no_right_answer_is_nan() -> None:
    metric = UnfaithfulFraction()
    metric.update(torch.tensor([False, False]), torch.tensor([False, False]))
    assert math.isnan(float(metric.compute()))
