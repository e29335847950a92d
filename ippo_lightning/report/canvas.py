"""The look of all figures: size, type, colours, labels at the curves. Needs no display and no global state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ippo_lightning.report.display import break_words
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.summary import bootstrap_bounds
from ippo_lightning.storage.atomic import write_whole

INK = "#1f2429"
MUTED = "#5c6670"
FAINT = "#d9dee3"
DROPPED_STRENGTH = 0.35
"""Opacity of the bars of dropped episodes: a light tint of the colour of their method."""
PART_COLOURS = ("#2f4858", "#6b8ba4", "#b4c7d6", "#8f8157", "#e3e7ea")
"""Stages of an iteration: tints, so that a reader does not take them for methods."""
# Mostly the palette of Okabe and Ito, which colour-blind readers can tell apart. Roles have colours of their own.
_FEATURED_COLOUR = "#D55E00"
_BASELINE_COLOUR = "#0072B2"
_UNTRAINED_COLOUR = "#767676"
_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7b5ea7", "#882255", "#999933", "#332288",
            "#661100", "#44AA99", "#AA4499")  # fmt: skip
_LABEL_WIDTH = 28
"""Characters of a name at the end of a curve: longer ones would leave no room for the curve."""
_HEIGHT, _AROUND, _LABEL_HEIGHT = 3.7, 0.9, 0.182
"""Inches of a figure, of what stands above and below its axes, and from a label at the end of a curve to the next."""
_WIDTH, _NARROW_WIDTH = 6.4, 4.0
"""Inches. A phone shows the narrow one with letters that are as large as those of its text."""
_DPI = 150
# A context, not rcParams: a user's own figures keep their style. Any, because not all versions know all these keys.
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same pixels on every machine
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
    "text.parse_math": False,  # a "$" in a title is a character, not the start of a formula
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
    """Return a colour for each method, by its role and position; the same in every figure and table.

    The first featured method, the first baseline and the methods without training have colours of their own. All others
    get the next colour of a palette.
    """
    roles: dict[str, str] = {}
    for method in comparison.methods.values():
        if method.featured and _FEATURED_COLOUR not in roles.values():
            roles[method.name] = _FEATURED_COLOUR
        elif method.name in comparison.baselines[:1]:
            roles[method.name] = _BASELINE_COLOUR
        elif method.is_untrained:
            roles[method.name] = _UNTRAINED_COLOUR
    others = [name for name in comparison.methods if name not in roles]
    chosen = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(others)}
    return {name: roles.get(name) or chosen[name] for name in comparison.methods}


@contextmanager
def canvas(
    path: Path, *, height: float = _HEIGHT, rows: int = 1, columns: int = 1, narrow: bool = False
) -> Iterator[list[list[Axes]]]:
    """Yield the axes `[rows][columns]` of a figure; write it as PNG if the block ends without an error.

    Args:
        path: of the PNG.
        height: inches.
        rows: of panels.
        columns: of panels.
        narrow: for a phone.
    """
    with mpl.rc_context(_STYLE):
        # No pyplot: it keeps every figure alive and picks a window system.
        figure = Figure(figsize=(_NARROW_WIDTH if narrow else _WIDTH, height), dpi=_DPI)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.09, wspace=0.04, hspace=0.06)
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False).tolist()
        # The version of matplotlib would change the file without a change of the picture.
        write_whole(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def iteration_axis(axes: Axes, iterations: Iterable[int], *, most: int) -> None:
    """Name the horizontal axis and label it with whole iterations, also with a single one.

    Args:
        axes: with everything drawn.
        iterations: those with data.
        most: number of intervals between labels.
    """
    axes.set_xlabel("iteration")
    found = set(iterations)
    if len(found) == 1:
        # Around one point matplotlib shows a part of an iteration, in which there may be no whole number.
        (only,) = found
        axes.set_xlim(only - 1, only + 1)
        axes.set_xticks([only])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))
        axes.margins(x=0.01)


def wrapped(title: str, *, width: int, lines: int = 2) -> str:
    r"""Return a title on a few lines that fit a narrow place; of a longer one, its middle becomes `…`.

    Two titles often begin with the same task and model, so the end stays, too.

    Args:
        title: broken at spaces, and inside a word only behind `/`, `_` and `-` unless a part is too long by itself.
        width: of a line, in characters, at least 4.
        lines: at most.

    Example:
        >>> wrapped("word_problems/smollm2-135m/ippo", width=14)
        'word_pr…ollm2-\n135m/ippo'
    """
    found = break_words(title, width=width)
    for size in range(width * lines, 3, -1):
        if len(found) <= lines:
            break
        head = size // 3
        found = break_words(f"{title[:head]}…{title[head + 1 - size :]}", width=width)
    return "\n".join(found)


def draw_curve(axes: Axes, series: Sequence[Mapping[int, float]], *, colour: str) -> tuple[float, float] | None:
    """Draw the mean over seeds and, if there are several, their 95 % bootstrap interval as a band.

    Args:
        axes: to draw on.
        series: for each seed a number by iteration.
        colour: of the line and the band.

    Returns:
        The last point of the mean, where the label goes; None if there is nothing to draw.
    """
    iterations = sorted({iteration for one in series for iteration in one})
    if not iterations:
        return None
    values = [[one[iteration] for one in series if iteration in one] for iteration in iterations]
    means = [sum(at) / len(at) for at in values]
    if any(len(at) > 1 for at in values):
        # Where only one seed is left, the band has no width and ends in the line.
        low, high = zip(*(bootstrap_bounds(at) for at in values), strict=True)
        axes.fill_between(iterations, low, high, color=colour, alpha=0.15, linewidth=0)
    # A line of one or two points is hard to see.
    marker = "o" if len(iterations) < 3 else None
    axes.plot(iterations, means, color=colour, marker=marker, markersize=5)
    return iterations[-1], means[-1]


def height_of_labels(count: int) -> float:
    """Return the height in inches of a figure that has room for so many labels at the ends of its curves."""
    return max(_HEIGHT, _AROUND + _LABEL_HEIGHT * count)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write names at the right end of their curves, moved apart if they would overlap.

    Args:
        axes: with final limits, because the distance between labels depends on them.
        ends: text, colour, and the last point (x, y) of each curve.
    """
    if not ends:
        return
    low, high = axes.get_ylim()
    # One column of labels: at its own end, the label of a run that stopped early would cover other curves.
    right = max(end[2] for end in ends)
    gap = _LABEL_HEIGHT / (axes.figure.bbox.height / axes.figure.dpi - _AROUND) * (high - low)
    heights = spread([end[3] for end in ends], gap=gap, low=low, high=high)
    for (text, colour, _, _), height in zip(ends, heights, strict=True):
        axes.annotate(
            wrapped(text, width=_LABEL_WIDTH, lines=1),
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
    """Move heights apart until neighbours are at least `gap` away. Their order stays.

    Args:
        heights: in any order.
        gap: smallest distance between neighbours.
        low: lower limit.
        high: upper limit. If the heights do not fit between the limits, the lowest ones leave the lower limit.

    Returns:
        The moved heights, in the order of `heights`.

    Example:
        >>> [round(height, 3) for height in spread([0.5, 0.5], gap=0.2, low=0.0, high=1.0)]
        [0.5, 0.7]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    # One pass up moves overlapping labels up; one pass down moves back those beyond the upper limit.
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
    """Return a formatter of fractions as percentages, with decimals only if the tick needs them."""
    return FuncFormatter(lambda fraction, _: f"{round(100 * fraction, 4):g} %")


def percent_axis(axes: Axes, values: Sequence[float]) -> None:
    """Label fractions as percentages, with room around the values but never beyond 0 and 100 %."""
    low, high = min(values), max(values)
    # At least two points of room: a flat curve would otherwise show noise as large moves.
    room = max(0.02, 0.08 * (high - low))
    # Just beyond the limits, so that a line there is seen, but too little for a tick at less than 0 %.
    edge = 0.02 * (high - low + room)
    axes.set_ylim(max(-edge, low - room), min(1 + edge, high + room))
    axes.yaxis.set_major_formatter(percent_formatter())
