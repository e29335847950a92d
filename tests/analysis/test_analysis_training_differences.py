"""The interval of a difference between two ways to train."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ippo_lightning.analysis.training_differences import (
    FEWEST_ROUNDS,
    Estimate,
    mean_difference,
    mean_of_estimates,
    mean_of_rounds,
)

SIMULATIONS = 600
BINOMIAL_NOISE = 0.03
"""More than three standard errors of a coverage of 0.95 over `SIMULATIONS`."""


def simulated(
    generator: np.random.Generator, *, trainings: int, level: float, shared: np.ndarray, training: float, own: float
) -> np.ndarray:
    """Returns of one way: a level, what the episodes have in common with the other way, and three kinds of noise."""
    episodes = len(shared)
    return np.asarray(
        level
        + shared
        + training * generator.normal(size=(trainings, 1))
        + own * generator.normal(size=episodes)
        + generator.normal(size=(trainings, episodes))
    )


@pytest.mark.parametrize(
    ("trainings", "training", "own"),
    [((3, 3), 1.0, 0.0), ((3, 5), 0.3, 0.5), ((5, 5), 0.1, 0.5), ((2, 2), 0.5, 0.3)],
)
def test_the_interval_contains_the_true_difference_as_often_as_it_says(
    trainings: tuple[int, int], training: float, own: float
) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(SIMULATIONS):
        shared = 3 * generator.normal(size=50)
        ways = [
            simulated(generator, trainings=count, level=level, shared=shared, training=training, own=own)
            for count, level in zip(trainings, (1.0, 0.0), strict=True)
        ]
        interval = mean_difference(ways[0], minus=ways[1]).interval
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    assert covered / SIMULATIONS > 0.95 - BINOMIAL_NOISE


def test_an_interval_over_episodes_alone_would_be_far_too_narrow() -> None:
    generator = np.random.default_rng(0)
    shared = np.zeros(50)
    ways = [
        simulated(generator, trainings=3, level=0.0, shared=shared, training=1.0, own=0.0),
        simulated(generator, trainings=3, level=0.0, shared=shared, training=1.0, own=0.0),
    ]
    estimate = mean_difference(ways[0], minus=ways[1])
    of_episodes = (ways[0].mean(axis=0) - ways[1].mean(axis=0)).std(ddof=1) / math.sqrt(50)
    assert estimate.standard_error > 3 * of_episodes


def test_without_differences_of_trainings_it_is_the_paired_interval_over_episodes() -> None:
    generator = np.random.default_rng(0)
    first, second = (np.tile(generator.normal(size=20), (2, 1)) for _ in range(2))
    estimate = mean_difference(first, minus=second)
    paired = stats.ttest_rel(first[0], second[0]).confidence_interval()
    assert estimate.interval == pytest.approx((paired.low, paired.high))


def test_without_differences_of_episodes_it_is_welchs_interval_over_trainings() -> None:
    one, other = np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.5, 0.0, 1.0, 2.0])
    estimate = mean_difference(np.tile(one[:, None], 7), minus=np.tile(other[:, None], 7))
    welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert estimate.interval == pytest.approx((welch.low, welch.high))


def test_a_case_by_hand() -> None:
    first, minus = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    # means of trainings: 1.5 and 4.5, 0 and 0.5; differences of episodes: 2 and 3.5; the rest: four times 0.5 or 0.25
    trainings, episodes, rest = (4.5 / 2, 0.125 / 2), 1.125 / 2, (1.0 / 4, 0.25 / 4)
    variance = sum(trainings) + episodes - sum(rest)
    estimate = mean_difference(first, minus=minus)
    assert estimate.mean == 2.75
    assert estimate.standard_error == pytest.approx(math.sqrt(variance))
    assert estimate.degrees == pytest.approx(variance**2 / sum(term**2 for term in (*trainings, episodes, *rest)))


def test_a_common_effect_of_an_episode_cancels() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(3, 9)), generator.normal(size=(4, 9))
    hard = 100 * generator.normal(size=9)
    assert mean_difference(first + hard, minus=second + hard).interval == pytest.approx(
        mean_difference(first, minus=second).interval
    )


def test_returns_that_never_vary_have_no_interval() -> None:
    estimate = mean_difference(np.full((3, 10), 0.1 + 0.2), minus=np.full((5, 10), 0.3))
    assert estimate.mean == 0.0  # not 4e-17, which would count as better
    assert estimate.interval is None


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (3, 4)])
def test_other_episodes_and_single_trainings_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \[trainings, episodes\]"):
        mean_difference(np.zeros((3, 5)), minus=np.zeros(shape))


def test_the_interval_over_iterations_is_students() -> None:
    differences = [0.1, -0.2, 0.4, 0.0, 0.3]
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert mean_of_rounds(differences).interval == pytest.approx((expected.low, expected.high))
    assert mean_of_rounds(differences[: FEWEST_ROUNDS - 1]).interval is None


def test_the_mean_of_independent_estimates_adds_their_variances() -> None:
    mean = mean_of_estimates([Estimate(1.0, 0.3, 10.0), Estimate(3.0, 0.4, 10.0)])
    assert mean.mean == 2.0
    assert mean.standard_error == pytest.approx(0.25)
    assert 10.0 < mean.degrees < 20.0
