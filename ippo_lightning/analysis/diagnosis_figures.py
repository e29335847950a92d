"""Figures of a diagnosis: both ends of the scores by their advantages, and both advantages along the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ippo_lightning.analysis.diagnosis import Bin, Diagnosis
from ippo_lightning.analysis.grid_map import Arrow, GridMap
from ippo_lightning.report.canvas import FAINT, INK, MUTED, canvas, percent_formatter

LOWEST_COLOUR, HIGHEST_COLOUR = "#D55E00", "#0072B2"
POSITIVE_COLOUR, NEGATIVE_COLOUR = "#009E73", "#7b5ea7"
_FIELD_COLOURS = {"H": "#c3ccd4", "C": "#c3ccd4", "G": "#f3e3b3"}
_ALL_COLOUR = "#aeb8c1"
_SIDE = 0.14
"""How far the arrows of both signs lie apart, in fields."""
_FROM_CENTRE, _LENGTH, _THICKEST = 0.07, 0.33, 4.5
_INNER = (0.005, 0.995)
"""Quantiles between which an axis of heavy tails lies; what is beyond is drawn at its edge."""


def draw_maps(grid: GridMap, ends: Sequence[tuple[str, Sequence[Arrow]]], path: Path) -> str:
    """Draw records as arrows on the map, one map per end of the scores.

    Args:
        grid: the map.
        ends: title and arrows.
        path: of the PNG.

    Returns:
        The figure in words.
    """
    rows = len(grid.letters)
    with canvas(path, height=0.95 + 3.0 * rows / grid.width, columns=len(ends)) as axes:
        for panel, (title, arrows) in zip(axes[0], ends, strict=True):
            _draw_map(panel, grid)
            most = max((arrow.count for arrow in arrows), default=1)
            places = Counter((arrow.field, arrow.direction) for arrow in arrows)
            for arrow in arrows:
                has_both = places[arrow.field, arrow.direction] > 1
                _draw_arrow(panel, arrow, most=most, aside=_SIDE if has_both else 0.0)
            panel.set_title(title)
        marks = [
            Line2D([], [], color=POSITIVE_COLOUR, linewidth=3, label="estimate > 0"),
            Line2D([], [], color=NEGATIVE_COLOUR, linewidth=3, label="estimate < 0"),
            Line2D([], [], color=INK, marker="X", linestyle="none", markersize=7, label="most have the wrong sign"),
        ]
        axes[0][0].figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9.5, handlelength=1.4)
    return "Maps of the environment with arrows. " + " ".join(
        f"{title}: {sum(arrow.count for arrow in arrows)} moves, {sum(arrow.wrong for arrow in arrows)} of them with "
        "an advantage of the wrong sign."
        for title, arrows in ends
    )


def _draw_map(panel: Axes, grid: GridMap) -> None:
    for row, letters in enumerate(grid.letters):
        for column, letter in enumerate(letters):
            colour = _FIELD_COLOURS.get(letter, "white")
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=FAINT, zorder=0))
            panel.text(column - 0.44, row - 0.44, letter, fontsize=8, color=MUTED, ha="left", va="top", zorder=1)
    panel.set_xlim(-0.52, grid.width - 0.48)
    panel.set_ylim(len(grid.letters) - 0.48, -0.52)
    panel.set_aspect("equal")
    panel.set_axis_off()


def _draw_arrow(panel: Axes, arrow: Arrow, *, most: int, aside: float) -> None:
    (row, column), (down, right) = arrow.field, arrow.direction
    size = (arrow.count / most) ** 0.5  # its thickness squared would exaggerate
    colour = POSITIVE_COLOUR if arrow.is_positive else NEGATIVE_COLOUR
    aside = aside if arrow.is_positive else -aside
    x, y = column + aside * down + _FROM_CENTRE * right, row - aside * right + _FROM_CENTRE * down
    tip = (x + _LENGTH * right, y + _LENGTH * down)
    style = f"-|>,head_width={0.18 + 0.22 * size:.2f},head_length={0.3 + 0.3 * size:.2f}"
    panel.annotate(
        "",
        xy=tip,
        xytext=(x, y),
        arrowprops={
            "arrowstyle": style,
            "color": colour,
            "linewidth": 0.8 + _THICKEST * size,
            "shrinkA": 0,
            "shrinkB": 0,
            "joinstyle": "miter",
        },
        zorder=3,
    )
    if arrow.wrong > arrow.count / 2:
        panel.plot(
            x + 0.11 * right, y + 0.11 * down, marker="X", color=INK, markersize=7, markeredgecolor="white",
            markeredgewidth=0.8, zorder=4,
        )  # fmt: skip
    panel.text(
        tip[0], tip[1], str(arrow.count), fontsize=7.5, ha="center", va="center", color=INK, zorder=5,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip


def draw_advantages(found: Diagnosis, path: Path) -> str:
    """Draw histograms of the estimated advantages: all records, and both ends of the scores.

    Args:
        found: what to draw.
        path: of the PNG.

    Returns:
        The figure in words.
    """
    estimates = found.records.estimates
    low, high = _limits(estimates)
    edges = np.linspace(low, high, 41)
    with canvas(path, height=3.6) as axes:
        panel = axes[0][0]
        for rows, name, colour, style in (
            (slice(None), "all", _ALL_COLOUR, "stepfilled"),
            (found.lowest, "lowest scores", LOWEST_COLOUR, "step"),
            (found.highest, "highest scores", HIGHEST_COLOUR, "step"),
        ):
            part = np.clip(estimates[rows], low, high)
            weights = np.full(len(part), 1 / len(part))
            panel.hist(part, bins=list(edges), weights=weights, histtype=style, color=colour, linewidth=1.8, label=name)  # type: ignore[arg-type]
        panel.axvline(0, color=INK, linewidth=0.9)
        panel.set_xlabel("estimated advantage")
        panel.set_title("Estimated advantages")
        panel.yaxis.set_major_formatter(percent_formatter())
        panel.legend(fontsize=9.5)
    ends = ((found.of_lowest, "lowest scores"), (found.of_highest, "highest scores"), (found.of_all, "all records"))
    return "Histograms of estimated advantages. " + " ".join(
        f"Of the {name}, {100 * one.positive_fraction:.0f} % are positive." for one, name in ends
    )


def draw_both(found: Diagnosis, path: Path) -> str:
    """Draw each record by its estimated and its Monte-Carlo advantage.

    Args:
        found: what to draw.
        path: of the PNG.

    Returns:
        The figure in words.
    """
    records = found.records
    x_low, x_high = _limits(records.estimates)
    y_low, y_high = _limits(records.monte_carlo)
    with canvas(path, height=3.9) as axes:
        panel = axes[0][0]
        # Where both have different signs.
        for left, bottom in ((x_low, 0.0), (0.0, y_low)):
            width, height = (0 - x_low if left < 0 else x_high), (y_high if bottom == 0 else 0 - y_low)
            panel.add_patch(Rectangle((left, bottom), width, height, facecolor="#f7ece6", edgecolor="none", zorder=0))
        every = np.arange(len(records))
        for rows, name, colour, size, strength in (
            (every, "all", _ALL_COLOUR, 9, 0.5),
            (found.highest, "highest scores", HIGHEST_COLOUR, 15, 0.75),
            (found.lowest, "lowest scores", LOWEST_COLOUR, 15, 0.75),
        ):
            x = np.clip(records.estimates[rows], x_low, x_high)
            y = np.clip(records.monte_carlo[rows], y_low, y_high)
            panel.scatter(x, y, s=size, color=colour, alpha=strength, linewidths=0, label=name, zorder=2)
        panel.axhline(0, color=INK, linewidth=0.8, zorder=1)
        panel.axvline(0, color=INK, linewidth=0.8, zorder=1)
        panel.set_xlim(x_low, x_high)
        panel.set_ylim(y_low, y_high)
        panel.grid(visible=False)
        panel.set_xlabel("estimated advantage")
        panel.set_ylabel("Monte-Carlo advantage")
        panel.set_title("Both advantages")
        # Beside the axes: inside, it would cover records.
        panel.figure.legend(loc="outside lower center", ncols=3, fontsize=9.5, handletextpad=0.2)
    return (
        "Each record by both advantages. Different signs: "
        f"{found.of_lowest.wrong} of the {found.of_lowest.count} lowest, {found.of_highest.wrong} of the "
        f"{found.of_highest.count} highest, {found.of_all.wrong} of all {found.of_all.count} records."
    )


def draw_by_rank(bins: Sequence[Bin], path: Path, *, title: str, name: str, ends: int) -> str:
    """Draw means of neighbouring ranks with their intervals.

    Args:
        bins: the lowest ranks first.
        path: of the PNG.
        title: above the panel.
        name: of the number.
        ends: records at each end, which are shaded.

    Returns:
        The figure in words.
    """
    last = bins[-1].last_rank
    with canvas(path, height=3.3) as axes:
        panel = axes[0][0]
        panel.axvspan(0, ends, color=LOWEST_COLOUR, alpha=0.13, linewidth=0)
        panel.axvspan(last - ends, last, color=HIGHEST_COLOUR, alpha=0.13, linewidth=0)
        panel.axhline(0, color=INK, linewidth=0.8)
        middles = [(one.first_rank + one.last_rank) / 2 for one in bins]
        means = [one.mean for one in bins]
        errors = [[one.mean - one.low for one in bins], [one.high - one.mean for one in bins]]
        panel.errorbar(middles, means, yerr=errors, fmt="o", color=INK, markersize=4.5, linewidth=1.2, capsize=2.5)
        panel.set_xlim(0, last)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.set_xlabel("rank of the score, 1 is the lowest")
        panel.set_ylabel(name)
        panel.set_title(title)
    first, middle, end = bins[0], bins[len(bins) // 2], bins[-1]
    return f"{title}: {first.mean:.3g} at the lowest, {middle.mean:.3g} in the middle, {end.mean:.3g} at the highest."


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis with zero inside, without the outermost values."""
    low, high = np.quantile(values, _INNER)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
