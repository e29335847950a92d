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
_FEW = 3
"""Prompts. If so many differ from all others, exp(-3) of the resamples contain none of them. That is more than 2.5 %,
so an end of the bootstrap is the number of the others."""
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
    one prompt are not independent. If all prompts have the same number, such as 1 if all responses are right, the
    bootstrap would give an interval without width, and that of `_of_equal_prompts` takes its place. If all but at most
    three do, the interval contains both. So more right responses never give a lower end of either side.

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
    is_bounded = all(term.is_fraction for term in terms)
    if np.ptp(known) <= _ROUNDING * max(1.0, float(np.abs(known).max())):
        low = high = float(known[0])
        if not is_bounded:
            return None
    # An end lies at 2.5 % of the resamples. More without a number, of which each may belong beyond it, leave it open.
    elif len(known) < len(drawn) * (1 + LEVEL) / 2:
        return None
    else:
        low, high = (float(end) for end in np.percentile(known, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)]))
    if is_bounded:
        lowest = 0.0 if minus is None else -1.0
        upper, lower = _almost_ends(_of_each_prompt(terms), otherwise=float(known[0]))
        low = min(low, _of_equal_prompts(upper, counted, lowest)[0])
        high = max(high, _of_equal_prompts(lower, counted, lowest)[1])
    return [low, high]


def _of_each_prompt(terms: Sequence[Ratio]) -> Array:
    """Return the number of each prompt that counts in all terms."""
    counts = np.all([term.whole > 0 for term in terms], axis=0)
    values = [term.part[counts] / term.whole[counts] for term in terms]
    return values[0] if len(values) == 1 else values[0] - values[1]


def _almost_ends(values: Array, *, otherwise: float) -> tuple[float, float]:
    """Return the largest and the smallest number without the three prompts at that end, or without fewer than half.

    If at most so many prompts differ from all others, both are the number of the others. No case is decided here:
    each is a rank, which never falls where the number of a prompt rises, and so the ends of the interval never do.
    """
    left_out = min(_FEW, (len(values) - 1) // 2)
    ordered = np.sort(values)
    return (float(ordered[-1 - left_out]), float(ordered[left_out])) if len(values) else (otherwise, otherwise)


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
