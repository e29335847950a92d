"""Axes for numbers that span several powers of ten, on both sides of zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_WIDEST = 100.0
"""Beyond this ratio of large to usual sizes, a linear axis shows only the large ones."""
_MOST_DIFFERENT = 30.0
"""Beyond this ratio of two scales, a linear axis shows the smaller one as a line."""
_MOST_TICKS = {"x": 5, "y": 7}
"""Ticks with zero: labels beside each other need more room than labels above each other."""


def linear_range(values: Sequence[float]) -> float | None:
    """Return up to which size a symmetric logarithmic axis is linear; None if a linear axis shows all values.

    Args:
        values: what the axis shows.

    Returns:
        The power of ten at or below the 10 % quantile of the sizes that are not zero, at most seven powers below the
        largest; None unless the largest size is over 100 times the median size.

    Example:
        >>> linear_range([0.1, -0.2, 0.3]), linear_range([0.2, -0.3, 0.5, 900.0])
        (None, 0.1)
    """
    sizes = np.abs([value for value in values if value != 0])
    if not sizes.size or sizes.max() <= _WIDEST * np.median(sizes):
        return None
    # One tiny value must not stretch the axis over twenty powers of ten.
    lowest = max(float(np.quantile(sizes, 0.1)), float(sizes.max()) * 1e-7)
    return float(10.0 ** np.floor(np.log10(lowest)))


def range_of_scales(scales: Sequence[float]) -> float | None:
    """Return up to which size an axis is linear that shows numbers of different scales; None for a linear axis.

    Args:
        scales: the largest size of each group, such as the scores of an iteration.

    Returns:
        The power of ten at or below the smallest scale, at most seven powers below the largest; None unless the largest
        scale is over 30 times the smallest.

    Example:
        >>> range_of_scales([1.0, 29.0]), range_of_scales([0.02, 80.0])
        (None, 0.01)
    """
    known = [scale for scale in scales if scale > 0]
    if not known or max(known) <= _MOST_DIFFERENT * min(known):
        return None
    return float(10.0 ** np.floor(np.log10(max(min(known), 1e-7 * max(known)))))


def draw_powers(panel: Axes, which: Literal["x", "y"], linear: float) -> None:
    """Make an axis logarithmic on both sides of zero, with few ticks.

    Args:
        panel: with everything drawn.
        which: of its two axes.
        linear: from `linear_range`.
    """
    (panel.set_xscale if which == "x" else panel.set_yscale)("symlog", linthresh=linear)
    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(_ticks(float(low), float(high), linear, most=_MOST_TICKS[which])))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}")))


def even_edges(low: float, high: float, *, bins: int, linear: float) -> np.ndarray:
    """Return borders of bars that are equally wide on the axis of `draw_powers`, with zero among them.

    Args:
        low: lowest value, at most 0.
        high: highest value, at least 0; one of both is not 0.
        bins: approximate number of bars.
        linear: from `linear_range`.
    """
    transform = SymmetricalLogTransform(base=10, linthresh=linear, linscale=1)
    first, last = transform.transform(np.array([low, high])).tolist()
    width = (last - first) / bins
    below, above = max(1, int(np.ceil(-first / width))), max(1, int(np.ceil(last / width)))
    # Zero is exactly zero on both scales, so no bar mixes what is on both sides of it.
    return np.asarray(transform.inverted().transform(width * np.arange(-below, above + 1)))


def score_label(scale: str) -> str:
    """Return the name of an axis of scores; one that is not linear has to be read with care, and tells so.

    Args:
        scale: of the axis, by matplotlib's name.
    """
    return "influence score" if scale == "linear" else "influence score (logarithmic axis)"


def _ticks(low: float, high: float, linear: float, *, most: int) -> list[float]:
    """Return zero and powers of ten on both sides, thinned out to a few."""
    powers = np.arange(np.floor(np.log10(linear)), np.floor(np.log10(max(-low, high, linear))) + 1)
    sides = [sign * 10.0**power for sign in (-1, 1) for power in powers]
    inside = [tick for tick in sides if low <= tick <= high]
    step = max(1, int(np.ceil(len(inside) / (most - 1))))
    # Those next to zero would overlap with its label.
    chosen = {power for power in powers[::-1][::step].tolist() if power >= powers[0] + min(step, 2)}
    return sorted({0.0} | {tick for tick in inside if round(float(np.log10(abs(tick)))) in chosen})
