"""How far a test number of one run may be off because the test has only so many prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ippo_lightning.report.ratio_intervals import Ratio, ratio_interval
from ippo_lightning.report.records import PromptOutcomes


def prompt_interval(outcomes: PromptOutcomes, metric: str) -> list[float] | None:
    """Return the 95 % interval of a test number over the prompts, see `ratio_interval`.

    Args:
        outcomes: of the prompts.
        metric: `exact_match`, `majority_vote`, `pass_at_k` or `unfaithful_fraction`.

    Returns:
        [low, high]; None with fewer than two prompts that count, or if too few responses are right for a fraction of
        them.
    """
    return ratio_interval(_ratio(outcomes, metric))


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
    return ratio_interval(other, minus=one) if len(one.part) == len(other.part) else None


def _ratio(outcomes: PromptOutcomes, metric: str) -> Ratio:
    """Return, for each prompt that counts, its part of the two sums whose ratio is the metric."""
    if metric == "exact_match":
        return _of(outcomes.correct, outcomes.samples)
    if metric == "unfaithful_fraction":
        return _of(outcomes.unfaithful, outcomes.judged)
    if metric == "majority_vote":
        return _mean_of([vote for vote in outcomes.majority_vote if vote is not None])
    counts = zip(outcomes.samples, outcomes.correct, strict=True)
    return _mean_of([_pass_at_k(n, c, outcomes.k) for n, c in counts if n >= outcomes.k >= 1])


def _of(parts: Sequence[float], wholes: Sequence[float]) -> Ratio:
    return Ratio(np.array(parts, dtype=np.float64), np.array(wholes, dtype=np.float64), is_fraction=True)


def _mean_of(values: list[float]) -> Ratio:
    return _of(values, [1.0] * len(values))


def _pass_at_k(samples: int, correct: int, k: int) -> float:
    # The same formula as `ippo_lightning.metrics.functional.pass_at_k`, which needs torch; the report does not.
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
