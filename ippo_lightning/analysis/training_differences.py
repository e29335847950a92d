"""How far two ways to train differ, where each was trained several times and played the same episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
FEWEST_ROUNDS = 5
"""Fewer differences than this have no interval over iterations, and support no finding."""
_ROUNDING = 1e-12

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A difference of two means."""

    mean: float
    standard_error: float
    degrees: float
    """Degrees of freedom of the standard error; NaN if there is none."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None if nothing varied, or nothing is known of how much it varies."""
        if not (self.degrees > 0 and self.standard_error > 0):
            return None
        reach = float(stats.t.ppf(0.5 + LEVEL / 2, self.degrees)) * self.standard_error
        return self.mean - reach, self.mean + reach


def mean_difference(first: Array, *, minus: Array) -> Estimate:
    """Return the difference of the mean returns of two ways to train, with its standard error.

    Trainings and episodes are both drawn at random: another order of minibatches, or another set of dropped rows, gives
    another policy, and other episodes give other returns. The model is y = way + training + episode + rest. The
    variance of the difference is

        sum over the ways of s^2(means of trainings) / trainings
        + s^2(differences of episodes) / episodes
        - sum over the ways of s^2(rest) / (trainings * episodes),

    whose last term is contained in both others. It is never less than the larger of these two. The degrees of freedom
    are those of Satterthwaite. An interval over episodes alone would be too narrow: it is about these few policies.
    Source: Searle, Casella and McCulloch 1992, Variance Components, chapter 4; Satterthwaite 1946.

    Args:
        first: shape [trainings, episodes], at least 2 of each; returns.
        minus: the same episodes in the same order, and any number of trainings.

    Raises:
        ValueError: other episodes, or fewer than two trainings or episodes.
    """
    if first.shape[1] != minus.shape[1] or min(*first.shape, *minus.shape) < 2:
        raise ValueError(f"shapes {first.shape} and {minus.shape}; expected [trainings, episodes], at least 2 of each")
    episodes = first.shape[1]
    of_trainings = [float(way.mean(axis=1).var(ddof=1)) / len(way) for way in (first, minus)]
    of_rest = [_rest(way) / way.size for way in (first, minus)]
    of_episodes = float((first.mean(axis=0) - minus.mean(axis=0)).var(ddof=1)) / episodes
    variance = max(sum(of_trainings) + of_episodes - sum(of_rest), sum(of_trainings), of_episodes)
    terms = [(of_episodes, episodes - 1)]
    for way, between, rest in zip((first, minus), of_trainings, of_rest, strict=True):
        terms += [(between, len(way) - 1), (rest, (len(way) - 1) * (episodes - 1))]
    weighted = sum(term**2 / degrees for term, degrees in terms)
    mean = float(first.mean() - minus.mean())
    # Equal sums in another order differ by rounding, which is no variation, and no better or worse.
    rounding = _ROUNDING * max(1.0, float(np.abs(first).max()), float(np.abs(minus).max()))
    mean = mean if abs(mean) > rounding else 0.0
    if math.sqrt(variance) <= rounding:
        return Estimate(mean, 0.0, math.nan)
    return Estimate(mean, math.sqrt(variance), variance**2 / weighted)


def _rest(way: Array) -> float:
    """Return the variance that neither the training nor the episode explains."""
    left = way - way.mean(axis=1, keepdims=True) - way.mean(axis=0, keepdims=True) + way.mean()
    return float((left**2).sum()) / ((len(way) - 1) * (way.shape[1] - 1))


def mean_of_rounds(differences: Sequence[float]) -> Estimate:
    """Return the mean difference over iterations, with Student's standard error.

    Each iteration has episodes and trainings of its own, so that the errors of two iterations are independent. True
    differences that change over the run make the interval wider, never too narrow, for the mean of these iterations.

    Args:
        differences: one per iteration, at least one. Fewer than `FEWEST_ROUNDS` have a mean only.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < FEWEST_ROUNDS:
        return Estimate(float(values.mean()), math.nan, math.nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1.0)


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent estimates, with the standard error of exactly these.

    Args:
        estimates: at least one; those without a standard error have varied in nothing.
    """
    known = [one for one in estimates if one.degrees > 0]
    variance = sum(one.standard_error**2 for one in known)
    weighted = sum(one.standard_error**4 / one.degrees for one in known)
    mean = sum(one.mean for one in estimates) / len(estimates)
    if not known or variance == 0:
        return Estimate(mean, 0.0, math.nan)
    return Estimate(mean, math.sqrt(variance) / len(estimates), variance**2 / weighted)
