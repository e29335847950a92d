"""Intervals over prompts, against all resamples counted out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ippo_lightning.report.prompt_intervals import paired_interval, prompt_interval
from ippo_lightning.report.records import PromptOutcomes
from ippo_lightning.run.evaluation_numbers import Ratio, differences

# Five prompts with four samples each.
OUTCOMES = PromptOutcomes(
    k=2,
    samples=(4, 4, 4, 4, 4),
    correct=(4, 2, 0, 3, 1),
    judged=(4, 2, 0, 3, 1),
    unfaithful=(1, 2, 0, 0, 1),
    majority_vote=(1.0, 0.5, None, 1.0, 0.0),
)


# 1999 draws place a 2.5 % quantile within about 0.7 % of probability, so at a neighbour of the exact one: sums of
# twenty samples move in steps of a twentieth, ratios of two sums of a few right responses in larger ones.
ONE_STEP, ONE_STEP_OF_A_RATIO = 0.051, 0.1


def counted_out(parts, wholes):
    """Return the 2.5 % and 97.5 % quantile over all resamples, each equally likely."""
    found = []
    for chosen in itertools.product(range(len(parts)), repeat=len(parts)):
        whole = sum(wholes[i] for i in chosen)
        found.append(sum(parts[i] for i in chosen) / whole if whole else math.nan)
    return np.nanquantile(found, [0.025, 0.975])


@pytest.mark.parametrize(
    ("metric", "parts", "wholes"),
    [
        ("exact_match", (4, 2, 0, 3, 1), (4, 4, 4, 4, 4)),
        # 1 - C(4 - c, 2) / C(4, 2) for c = 4, 2, 0, 3, 1: 1, 5/6, 0, 1, 1/2
        ("pass_at_k", (1, 5 / 6, 0, 1, 1 / 2), (1, 1, 1, 1, 1)),
        ("majority_vote", (1.0, 0.5, 1.0, 0.0), (1, 1, 1, 1)),  # without the prompt that has no reference
    ],
)
def test_an_interval_is_that_of_all_resamples(metric, parts, wholes):
    assert prompt_interval(OUTCOMES, metric) == pytest.approx(counted_out(parts, wholes), abs=ONE_STEP)


def test_a_fraction_of_the_right_responses_draws_both_sums_together():
    outcomes = PromptOutcomes(1, (4,) * 4, (2, 3, 4, 1), (2, 3, 4, 1), (2, 0, 1, 1), (None,) * 4)
    expected = counted_out((2, 0, 1, 1), (2, 3, 4, 1))
    assert prompt_interval(outcomes, "unfaithful_fraction") == pytest.approx(expected, abs=ONE_STEP_OF_A_RATIO)


def test_prompts_are_drawn_with_all_their_samples():
    # Eight samples, of which four are right. Independent samples would give an interval inside (0, 1); two prompts, one
    # with all right and one with none, give 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    outcomes = PromptOutcomes(1, (4, 4), (4, 0), (0, 0), (0, 0), (1.0, 0.0))
    assert prompt_interval(outcomes, "exact_match") == [0.0, 1.0]


def test_prompts_that_are_all_right_have_the_interval_of_wilson():
    outcomes = PromptOutcomes(2, (4,) * 20, (4,) * 20, (4,) * 20, (0,) * 20, (1.0,) * 20)
    # of 20 prompts, and not of their 80 responses: scipy.stats.binomtest(20, 20).proportion_ci(method="wilson")
    for metric in ("exact_match", "majority_vote", "pass_at_k"):
        assert prompt_interval(outcomes, metric) == pytest.approx([0.8388748419471808, 1.0], abs=1e-12)
    assert prompt_interval(outcomes, "unfaithful_fraction") == pytest.approx([0.0, 1 - 0.8388748419471808], abs=1e-12)


@pytest.mark.parametrize(
    ("outcomes", "metric"),
    [
        (PromptOutcomes(1, (4,), (2,), (2,), (0,), (1.0,)), "exact_match"),
        (PromptOutcomes(1, (4, 4), (0, 0), (0, 0), (0, 0), (0.0, 0.0)), "unfaithful_fraction"),
        (PromptOutcomes(1, (4, 4), (1, 1), (0, 0), (0, 0), (None, None)), "majority_vote"),
        (PromptOutcomes(9, (4, 4), (1, 1), (0, 0), (0, 0), (None, None)), "pass_at_k"),
    ],
)
def test_there_is_no_interval_without_enough_prompts(outcomes, metric):
    assert prompt_interval(outcomes, metric) is None


def test_an_interval_repeats_itself():
    assert prompt_interval(OUTCOMES, "exact_match") == prompt_interval(OUTCOMES, "exact_match")


def test_a_paired_interval_is_that_of_an_evaluation_of_both_runs():
    """`ippo evaluate` computes it from the items themselves."""
    other = PromptOutcomes(2, (4,) * 5, (4, 4, 1, 2, 2), (4, 4, 1, 2, 2), (0, 1, 0, 0, 1), (1.0, 1.0, None, 0.5, 0.0))
    for metric, first, second in (
        ("exact_match", (OUTCOMES.correct, OUTCOMES.samples), (other.correct, other.samples)),
        ("unfaithful_fraction", (OUTCOMES.unfaithful, OUTCOMES.judged), (other.unfaithful, other.judged)),
    ):
        one, two = (
            Ratio(*(np.array(column, dtype=float) for column in columns), is_fraction=True)
            for columns in (first, second)
        )
        found = differences({"it": one}, {"it": two}, pairs=[(i, i) for i in range(5)])["it"]
        assert paired_interval(OUTCOMES, other, metric) == pytest.approx(found["interval"], rel=1e-12)


def test_what_is_hard_in_both_runs_cancels():
    none = (0,) * 60
    easy_and_hard = PromptOutcomes(1, (4,) * 60, (4, 4, 4, 1, 1, 1) * 10, none, none, (None,) * 60)
    lower = PromptOutcomes(1, (4,) * 60, (3, 3, 3, 0, 0, 1) * 10, none, none, (None,) * 60)
    low, high = paired_interval(easy_and_hard, lower, "exact_match") or (-1, 1)
    # One response of four at five prompts, none at the sixth. Each number alone is uncertain by 0.09.
    assert -0.3 < low < -0.2 < high < -0.15
