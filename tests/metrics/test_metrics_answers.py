"""Exact match, pass@k, majority vote, unfaithful fraction and response length against counting by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from launching import start_method
from torch import multiprocessing as mp

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import (
    ExactMatch,
    MajorityVote,
    PassAtK,
    ResponseLength,
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
    "metric",
    [ExactMatch(), PassAtK(1), MajorityVote(), UnfaithfulFraction(), ResponseLength()],
    ids=lambda m: type(m).__name__,
)
def test_nothing_seen_is_nan(metric) -> None:
    assert math.isnan(float(metric.compute()))


def test_no_right_answer_is_nan() -> None:
    metric = UnfaithfulFraction()
    metric.update(torch.tensor([False, False]), torch.tensor([False, False]))
    assert math.isnan(float(metric.compute()))


def test_the_response_length_is_the_mean_over_responses_of_any_number_of_batches() -> None:
    metric = ResponseLength()
    metric.update(torch.tensor([[3, 5], [10, 2]]))
    metric.update(torch.tensor([100]))
    assert float(metric.compute()) == 120 / 5


# --- uneven ranks ------------------------------------------------------------------------------------------------

SAMPLES, K = 4, 2
SHARES = (slice(0, 2), slice(2, 9), slice(9, 9))
"""Of the prompts, by rank: two, seven, none."""


def prompts() -> list[list[tuple[str, bool, int]]]:
    """Of each prompt, its samples: answer, whether the steps are faithful, tokens. `1` is the right answer."""
    draw = random.Random(0)
    return [[(draw.choice("123"), draw.random() < 0.5, draw.randint(1, 30)) for _ in range(SAMPLES)] for _ in range(9)]


def by_brute_force() -> dict[str, float]:
    groups = prompts()
    samples = [sample for group in groups for sample in group]
    right = [sample for sample in samples if sample[0] == "1"]
    passed = [
        sum(any(answer == "1" for answer, *_ in chosen) for chosen in itertools.combinations(group, K))
        / math.comb(SAMPLES, K)
        for group in groups
    ]
    votes = []
    for group in groups:
        counts = Counter(answer for answer, *_ in group)
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        votes.append(winners.count("1") / len(winners))
    return {
        "ExactMatch": len(right) / len(samples),
        "PassAtK": sum(passed) / len(groups),
        "MajorityVote": sum(votes) / len(groups),
        "UnfaithfulFraction": sum(not faithful for _, faithful, _ in right) / len(right),
        "ResponseLength": sum(tokens for *_, tokens in samples) / len(samples),
    }


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES))
    metrics = [ExactMatch(), PassAtK(K), MajorityVote(), UnfaithfulFraction(), ResponseLength()]
    exact, passed, vote, unfaithful, length = metrics
    for group in prompts()[SHARES[rank]]:
        correct = torch.tensor([[answer == "1" for answer, *_ in group]])
        exact.update(correct)
        passed.update(correct)
        vote.update([[answer for answer, *_ in group]], ["1"])
        unfaithful.update(correct, torch.tensor([[faithful for _, faithful, _ in group]]))
        length.update(torch.tensor([tokens for *_, tokens in group]))
    found = {type(metric).__name__: float(metric.compute()) for metric in metrics}
    assert found == pytest.approx(by_brute_force(), abs=SINGLE_PRECISION)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_uneven_ranks_compute_what_brute_force_finds_for_all_prompts(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=len(SHARES), start_method=start_method())
