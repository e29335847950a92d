"""The look of all figures: size, type, colours, direct labels. No display and no global matplotlib state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ippo_lightning.report.folders import Comparison
from ippo_lightning.report.summary import bootstrap_bounds

INK = "#1f2429"
MUTED = "#5c6670"
FAINT = "#d9dee3"
KEPT_COLOUR = "#0072B2"
DROPPED_COLOUR = "#E69F00"
PART_COLOURS = ("#2f4858", "#6b8ba4", "#b4c7d6", "#E69F00", "#e3e7ea")
"""Stages of an iteration; tints, so that they are not taken for methods."""
_FIXED_COLOURS = {"sft": "#767676", "ppo": "#0072B2", "ippo": "#D55E00"}
_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7b5ea7")
_WIDTH = 6.4
_DPI = 150
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def method_colours(comparison: Comparison) -> dict[str, str]:
    """Return a colour for each method, the same in every figure and on the page; safe for colour-blind readers."""
    spare = [name for name in comparison.methods if name not in _FIXED_COLOURS]
    chosen = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(spare)}
    return {name: _FIXED_COLOURS.get(name) or chosen[name] for name in comparison.methods}


@contextmanager
def canvas(path: Path, *, height: float = 3.7, rows: int = 1, columns: int = 1) -> Iterator[list[list[Axes]]]:
    """Yield axes `[rows][columns]` of a figure that is written as PNG when the block ends without an error."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.09, wspace=0.04, hspace=0.06)
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False).tolist()
        path.parent.mkdir(parents=True, exist_ok=True)
        # The software's version and the date would change the file without changing the picture.
        figure.savefig(path, format="png", metadata={"Software": None})


def draw_curve(axes: Axes, series: Sequence[Mapping[int, float]], *, colour: str) -> tuple[float, float] | None:
    """Draw the mean over seeds with a band, the 95 % bootstrap interval over seeds where there are several.

    Returns:
        The last point of the mean, where a direct label goes; None where there is nothing to draw.
    """
    iterations = sorted({iteration for one in series for iteration in one})
    if not iterations:
        return None
    values = [[one[iteration] for one in series if iteration in one] for iteration in iterations]
    means = [sum(at) / len(at) for at in values]
    if any(len(at) > 1 for at in values):
        low, high = zip(*(bootstrap_bounds(at) for at in values), strict=True)
        axes.fill_between(iterations, low, high, color=colour, alpha=0.15, linewidth=0)
    marker = "o" if len(iterations) < 3 else None
    axes.plot(iterations, means, color=colour, marker=marker, markersize=5)
    return iterations[-1], means[-1]


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write names at the right end of their curves, moved apart where they would overlap.

    Args:
        axes: with its limits settled.
        ends: text, colour, and the last point of each curve.
    """
    if not ends:
        return
    low, high = axes.get_ylim()
    right = max(end[2] for end in ends)
    heights = spread([end[3] for end in ends], gap=0.065 * (high - low), low=low, high=high)
    for (text, colour, _, _), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            xy=(right, height),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            fontsize=9.5,
            va="center",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move heights apart until neighbours are at least `gap` away, keeping their order and, where it fits, the limits.

    Example:
        >>> [round(height, 3) for height in spread([0.5, 0.5], gap=0.2, low=0.0, high=1.0)]
        [0.5, 0.7]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    floor = low
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def percent_formatter() -> FuncFormatter:
    """Return a formatter of shares as percentages, with decimals only where the tick needs them."""
    return FuncFormatter(lambda share, _: f"{round(100 * share, 4):g} %")


def percent_axis(axes: Axes, values: Sequence[float]) -> None:
    """Label shares as percentages, with room around the values but never beyond 0 and 100 %."""
    low, high = min(values), max(values)
    room = max(0.02, 0.08 * (high - low))
    axes.set_ylim(max(-0.005, low - room), min(1.005, high + room))
    axes.yaxis.set_major_formatter(percent_formatter())
