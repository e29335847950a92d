"""Axes for numbers that span several powers of ten, on both sides of zero."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

_WIDEST = 100.0
"""Beyond this ratio of large to usual sizes, a linear axis shows only the large ones."""
_MOST_DIFFERENT = 30.0
"""Beyond this ratio of two scales, a linear axis shows the smaller one as a line."""
_LINE = 0.085
"""Height of a label with the space to the next one, as a part of an axis."""
_CHARACTER = 0.042
"""Width of a character of a label, as a part of the axis of the narrowest panel, one of two beside each other."""
_FEWEST = 4
"""Ticks without which an axis cannot be read; powers of ten that give fewer get others between them."""


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
    low, high = sorted(map(float, axis.get_view_interval()))
    ticks = _ticks(low, high, linear, which)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _label(value)))


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


def _ticks(low: float, high: float, linear: float, which: Literal["x", "y"]) -> list[float]:
    """Return zero and powers of ten on both sides, evenly thinned out; between few of them also their multiples."""
    transform = SymmetricalLogTransform(base=10, linthresh=linear, linscale=1)

    def places(values: Sequence[float]) -> list[float]:
        first, last, *found = transform.transform(np.array([low, high, *values])).tolist()
        return [(place - first) / (last - first) for place in found]

    def added(chosen: list[float], more: Sequence[float]) -> list[float]:
        """Add each value that is inside, and whose label leaves those that are chosen their room."""
        taken = list(zip(chosen, places(chosen), strict=True))
        for value, place in zip(more, places(more), strict=True):
            is_free = all(abs(place - at) >= _gap(value, other, which) for other, at in taken)
            taken += [(value, place)] if low <= value <= high and is_free else []
        return [value for value, _ in taken]

    lowest, highest = np.floor(np.log10(linear)), np.floor(np.log10(max(-low, high, linear)))
    powers = (10.0 ** np.arange(highest, lowest - 1, -1)).tolist()
    chosen = start = [0.0] if low <= 0 <= high else []
    for step in range(1, len(powers) + 1):
        wanted = [value for power in powers[::step] for value in (power, -power) if low <= value <= high]
        chosen = added(start, wanted)
        # Evenly thinned out, and not one here and one there: all of this step fit, but for those next to zero.
        if all(value in chosen or abs(value) <= powers[::step][-1] for value in wanted):
            break
    for multiples in ((3.0,), (2.0, 5.0), (1.5, 4.0, 7.0)):
        if len(chosen) < _FEWEST:
            chosen = added(chosen, [sign * m * power for power in powers for m in multiples for sign in (1, -1)])
    if len(chosen) < _FEWEST:
        # The axis shows a small part of a power of ten, or one on which all is linear.
        chosen = added(chosen, [float(tick) for tick in MaxNLocator(_FEWEST + 1).tick_values(low, high)])
    return sorted(chosen)


def _gap(first: float, second: float, which: Literal["x", "y"]) -> float:
    """Return the smallest distance of two ticks whose labels do not touch, as a part of the axis."""
    if which == "y":
        return _LINE
    return _CHARACTER * (1 + (len(_label(first)) + len(_label(second))) / 2)


def _label(value: float) -> str:
    """Return a short label: 1e-5, and not 1e-05.

    Example:
        >>> [_label(value) for value in (0.0, -0.001, 2e-05, 1000.0, 1e6)]
        ['0', '−0.001', '2e−5', '1000', '1e6']
    """
    return re.sub(r"e([+-])0*", r"e\1", f"{value:g}").replace("e+", "e").replace("-", "\N{MINUS SIGN}")
