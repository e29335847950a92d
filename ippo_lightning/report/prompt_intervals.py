"""How far a test number of one run may be off because the test has only so many prompts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ippo_lightning.report.records import PromptOutcomes

_RESAMPLES = 9999
_LEVEL = 0.95
_BATCH = 100
"""Resamples in memory at a time: an index of 64 bits for each prompt of each."""


def prompt_interval(outcomes: PromptOutcomes, metric: str) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of a test number over the prompts.

    Prompts are drawn with replacement, each with all its samples: samples of one prompt are not independent. A number
    is a ratio of two sums over prompts, so both are drawn together.

    Args:
        outcomes: of the prompts.
        metric: `exact_match`, `majority_vote`, `pass_at_k` or `unfaithful_fraction`.

    Returns:
        [low, high]; None with fewer than two prompts that count, or if too few responses are right for a fraction of
        them.
    """
    return _interval([_ratio(outcomes, metric)])


def paired_interval(first: PromptOutcomes, second: PromptOutcomes, metric: str) -> list[float] | None:
    """Return the 95 % interval of the second run's number minus the first one's, over the prompts of both.

    Each resample of the prompts is that of both runs, as in `ippo evaluate`: what is hard about a prompt is in both
    numbers and cancels.

    Args:
        first: of the prompts, in one run.
        second: of the same prompts in the same order, in another run.
        metric: see `prompt_interval`.
    """
    one, other = _ratio(first, metric), _ratio(second, metric)
    # Numbers that leave out prompts, such as a majority vote without a reference, may leave out others.
    return _interval([other, one]) if len(one[0]) == len(other[0]) else None


def _interval(terms: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float] | None:
    """Return the interval of a ratio of sums over prompts, or of the first ratio minus the second."""
    if len(terms[0][0]) < 2 or not all(wholes.any() for _, wholes in terms):
        return None
    # A resample without any right response has no unfaithful fraction: 0 / 0, of which scipy warns too.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            [column for term in terms for column in term],
            _of_sums,
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            batch=_BATCH,
            confidence_level=_LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),  # the same run gives the same report
        ).bootstrap_distribution
    # A few such resamples are left out, as in `ippo evaluate`; of many, the others would look too certain.
    if np.isnan(drawn).mean() > (1 - _LEVEL) / 2:
        return None
    low, high = np.nanpercentile(drawn, [50 * (1 - _LEVEL), 100 - 50 * (1 - _LEVEL)])
    return [float(low), float(high)]


def _of_sums(*columns: Any, axis: int) -> Any:
    sums = [column.sum(axis=axis) for column in columns]
    values = [parts / wholes for parts, wholes in zip(sums[::2], sums[1::2], strict=True)]
    return values[0] if len(values) == 1 else values[0] - values[1]


def _ratio(outcomes: PromptOutcomes, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each prompt that counts, its part of the two sums whose ratio is the metric."""
    if metric == "exact_match":
        pairs = list(zip(outcomes.correct, outcomes.samples, strict=True))
    elif metric == "unfaithful_fraction":
        pairs = list(zip(outcomes.unfaithful, outcomes.judged, strict=True))
    elif metric == "majority_vote":
        return _mean_of([vote for vote in outcomes.majority_vote if vote is not None])
    else:
        counts = zip(outcomes.samples, outcomes.correct, strict=True)
        return _mean_of([_pass_at_k(n, c, outcomes.k) for n, c in counts if n >= outcomes.k >= 1])
    parts, wholes = np.array(pairs, dtype=np.float64).T
    return parts, wholes


def _mean_of(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, dtype=np.float64), np.ones(len(values))


def _pass_at_k(samples: int, correct: int, k: int) -> float:
    # The same formula as `ippo_lightning.metrics.functional.pass_at_k`, which needs torch; the report does not.
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
