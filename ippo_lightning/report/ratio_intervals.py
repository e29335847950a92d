"""The 95 % interval of a number over prompts: one rule for `ippo evaluate` and for the report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES, LEVEL, SEED = 9999, 0.95, 0
_ENTRIES = 4_000_000  # of the resamples that are in memory at the same time
_ROUNDING = 1e-12
"""Two sums of the same floats in another order differ by less, relative to their size."""

Array = NDArray[np.float64]


class Ratio(NamedTuple):
    """A sum over prompts divided by another one."""

    part: Array
    """Shape [prompts]."""
    whole: Array
    """Shape [prompts], each at least 0."""
    is_fraction: bool = False
    """Whether each part lies between 0 and its whole."""

    def of(self, places: Sequence[int]) -> Ratio:
        """Return the ratio over some of the prompts."""
        chosen = np.asarray(places, dtype=np.int64)
        return Ratio(self.part[chosen], self.whole[chosen], self.is_fraction)

    @property
    def value(self) -> float | None:
        """The ratio; None for 0 / 0."""
        whole = math.fsum(self.whole)
        return math.fsum(self.part) / whole if whole else None


def ratio_interval(first: Ratio, minus: Ratio | None = None) -> list[float] | None:
    """Return the 95 % interval of a ratio over prompts, or of the difference of two over the same prompts.

    It is the percentile bootstrap: prompts are drawn with replacement, each with all its samples, because samples of
    one prompt are not independent. If all resamples have the same number, such as 1 if all responses are right, the
    bootstrap would give an interval without width, and `_of_equal_prompts` takes its place.

    Args:
        first: of the prompts.
        minus: of the same prompts in the same order.

    Returns:
        [low, high]; None if fewer than two prompts count, if more than 2.5 % of the resamples have no number, or if
        all resamples have the same number and it is no fraction.
    """
    terms = [first] if minus is None else [first, minus]
    counted = min(int(np.count_nonzero(term.whole)) for term in terms)
    if counted < 2:
        return None
    drawn = _resampled(terms)
    known = drawn[~np.isnan(drawn)]
    if np.ptp(known) <= _ROUNDING * max(1.0, float(np.abs(known).max())):
        is_bounded = all(term.is_fraction for term in terms)
        return _of_equal_prompts(float(known[0]), counted, 0.0 if minus is None else -1.0) if is_bounded else None
    # An end lies at 2.5 % of the resamples. More without a number, of which each may belong beyond it, leave it open.
    if len(known) < len(drawn) * (1 + LEVEL) / 2:
        return None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return [float(low), float(high)]


def _of_equal_prompts(value: float, prompts: int, lowest: float) -> list[float]:
    """Return the interval of a mean of numbers in [lowest, 1] that are all equal.

    At most z² / (n + z²) of all prompts have another number: the end of Wilson's interval for 0 of n. These may have
    any number in the range. For a fraction of 0 or 1 this is Wilson's interval; for a difference of 0, or of 1 from 0
    to 1, it is Tango's score interval of paired proportions (Statistics in Medicine 17, 1998).

    Args:
        value: of each prompt.
        prompts: n. Not the responses, because those to one prompt are not independent.
        lowest: 0 for a fraction, -1 for a difference of two.
    """
    squared = float(stats.norm.ppf(0.5 + LEVEL / 2)) ** 2
    others = squared / (prompts + squared)
    return [value - others * (value - lowest), value + others * (1.0 - value)]


def _resampled(terms: Sequence[Ratio]) -> Array:
    """Return the number of each resample, shape [resamples]; NaN for 0 / 0."""

    def statistic(*columns: Array, axis: int) -> Array:
        sums = [column.sum(axis=axis) for column in columns]
        with np.errstate(invalid="ignore", divide="ignore"):
            values = [part / whole for part, whole in zip(sums[::2], sums[1::2], strict=True)]
        return values[0] if len(values) == 1 else values[0] - values[1]

    with warnings.catch_warnings():
        # Of the interval that it would give itself, which is NaN if one resample is.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn: Array = stats.bootstrap(
            [column for term in terms for column in (term.part, term.whole)],
            statistic,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            paired=True,
            vectorized=True,
            batch=max(_ENTRIES // len(terms[0].part), 1),
            method="percentile",
            rng=np.random.default_rng(SEED),  # the same items have the same intervals
        ).bootstrap_distribution
    return drawn
