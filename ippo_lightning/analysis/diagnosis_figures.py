"""Figures of a diagnosis: both ends of the scores by their advantages, and both advantages along the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ippo_lightning.analysis.diagnosis import Bin, Diagnosis
from ippo_lightning.analysis.grid_map import Arrow, GridMap
from ippo_lightning.analysis.map_figures import ArrowMap, MapArrow, draw_arrow_maps
from ippo_lightning.report.canvas import INK, canvas, percent_formatter, wrapped

LOWEST_COLOUR, HIGHEST_COLOUR = "#D55E00", "#0072B2"
_ALL_COLOUR, _ALL_BARS = "#66717c", "#98a4af"
"""Of all records: points, and bars, which are larger and may be lighter."""
_TITLE_WIDTH = 26
"""Characters of a line above a narrow panel."""
_INNER = (0.005, 0.995)
"""Quantiles between which an axis of heavy tails lies; what is beyond is drawn at its edge."""


def draw_maps(grid: GridMap, ends: Sequence[tuple[str, Sequence[Arrow]]], path: Path, *, narrow: bool) -> str:
    """Draw records as arrows on the map, one map per end of the scores.

    Args:
        grid: the map.
        ends: title and arrows.
        path: of the PNG.
        narrow: for a phone.

    Returns:
        The figure in words.
    """
    maps = [ArrowMap(title=title, arrows=_map_arrows(arrows)) for title, arrows in ends]
    draw_arrow_maps(grid, maps, path, word="estimate", narrow=narrow)
    return "Maps of the environment with arrows. " + " ".join(
        f"{title}: {sum(arrow.count for arrow in arrows)} moves, {sum(arrow.wrong for arrow in arrows)} of them with "
        "an advantage of the wrong sign."
        for title, arrows in ends
    )


def _map_arrows(arrows: Sequence[Arrow]) -> list[MapArrow]:
    most = max((arrow.count for arrow in arrows), default=1)
    return [
        MapArrow(
            field=arrow.field,
            direction=arrow.direction,
            is_positive=arrow.is_positive,
            size=(arrow.count / most) ** 0.5,  # its thickness squared would exaggerate
            number=str(arrow.count),
            is_wrong=arrow.wrong > arrow.count / 2,
        )
        for arrow in arrows
    ]


def draw_advantages(found: Diagnosis, path: Path, *, narrow: bool) -> str:
    """Draw histograms of the estimated advantages: all records, and both ends of the scores.

    Args:
        found: what to draw.
        path: of the PNG.
        narrow: for a phone.

    Returns:
        The figure in words.
    """
    estimates = found.records.estimates
    low, high = _limits(estimates)
    edges = np.linspace(low, high, 41)
    with canvas(path, height=3.6, narrow=narrow) as axes:
        panel = axes[0][0]
        for rows, name, colour, style in (
            (slice(None), "all", _ALL_BARS, "stepfilled"),
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


def draw_both(found: Diagnosis, path: Path, *, narrow: bool) -> str:
    """Draw each record by its estimated and its Monte-Carlo advantage.

    Args:
        found: what to draw.
        path: of the PNG.
        narrow: for a phone.

    Returns:
        The figure in words.
    """
    records = found.records
    x_low, x_high = _limits(records.estimates)
    y_low, y_high = _limits(records.monte_carlo)
    with canvas(path, height=3.9, narrow=narrow) as axes:
        panel = axes[0][0]
        # Where both have different signs.
        for left, bottom in ((x_low, 0.0), (0.0, y_low)):
            width, height = (0 - x_low if left < 0 else x_high), (y_high if bottom == 0 else 0 - y_low)
            panel.add_patch(Rectangle((left, bottom), width, height, facecolor="#f7ece6", edgecolor="none", zorder=0))
        every = np.arange(len(records))
        for rows, name, colour, size, strength in (
            (every, "all", _ALL_COLOUR, 13, 0.6),
            (found.highest, "highest scores", HIGHEST_COLOUR, 20, 0.8),
            (found.lowest, "lowest scores", LOWEST_COLOUR, 20, 0.8),
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
        panel.figure.legend(
            loc="outside lower center", ncols=1 if narrow else 3, fontsize=9.5, handletextpad=0.2, markerscale=1.5
        )
    return (
        "Each record by both advantages. Different signs: "
        f"{found.of_lowest.wrong} of the {found.of_lowest.count} lowest, {found.of_highest.wrong} of the "
        f"{found.of_highest.count} highest, {found.of_all.wrong} of all {found.of_all.count} records."
    )


def draw_by_rank(bins: Sequence[Bin], path: Path, *, narrow: bool, title: str, name: str, ends: int) -> str:
    """Draw means of neighbouring ranks with their intervals.

    Args:
        bins: the lowest ranks first.
        path: of the PNG.
        narrow: for a phone.
        title: above the panel.
        name: of the number.
        ends: records at each end, which are shaded.

    Returns:
        The figure in words.
    """
    last = bins[-1].last_rank
    with canvas(path, height=3.3, narrow=narrow) as axes:
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
        panel.set_title(wrapped(title, width=_TITLE_WIDTH) if narrow else title)
    first, middle, end = bins[0], bins[len(bins) // 2], bins[-1]
    return f"{title}: {first.mean:.3g} at the lowest, {middle.mean:.3g} in the middle, {end.mean:.3g} at the highest."


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis with zero inside, without the outermost values."""
    low, high = np.quantile(values, _INNER)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
