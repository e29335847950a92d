"""How far a test number of one run may be off because the test has only so many prompts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy import stats

from ippo_lightning.report.records import PromptOutcomes

_RESAMPLES = 9999
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
    parts, wholes = _ratio(outcomes, metric)
    if len(parts) < 2 or not wholes.any():
        return None
    # A resample without any right response has no unfaithful fraction: 0 / 0, of which scipy warns too.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (parts, wholes),
            _of_sums,
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            batch=_BATCH,
            confidence_level=0.95,
            method="percentile",
            rng=np.random.default_rng(0),  # the same run gives the same report
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return [low, high] if math.isfinite(low) and math.isfinite(high) else None


def _of_sums(parts: Any, wholes: Any, axis: int) -> Any:
    return parts.sum(axis=axis) / wholes.sum(axis=axis)


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
