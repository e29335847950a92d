"""Figures of an intervention: differences over iterations as boxes, by iteration, and the trainings of a single one.

Each function writes one PNG and returns the figure in words; None if there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ippo_lightning.analysis.intervention import ALL, OWN, RANDOM, WITHOUT
from ippo_lightning.analysis.intervention_summary import Comparison, Outcomes, comparisons, shown
from ippo_lightning.analysis.pages import FROM_ZERO
from ippo_lightning.analysis.training_differences import Estimate, mean_of_estimates
from ippo_lightning.report.canvas import INK, MUTED, canvas, iteration_axis, wrapped
from ippo_lightning.report.display import plain

COLOURS: Mapping[str, str] = {
    "without_negatives": "#D55E00", "random_drop": "#0072B2", "negatives_or_random": "#7b5ea7",
    "as_the_run": "#009E73",
}  # fmt: skip
"""Of the comparisons, from the palette of Okabe and Ito."""
_WAYS: Mapping[str, tuple[str, str]] = {
    ALL: ("all records", INK), WITHOUT: ("without the negatives", COLOURS["without_negatives"]),
    RANDOM: ("random drop", COLOURS["random_drop"]), OWN: ("as the run trained", COLOURS["as_the_run"]),
}  # fmt: skip
_TITLE_WIDTH = 22
"""Characters of a line beside the axis."""
_FEW_POINTS = 5
"""Fewer points than this have no quartiles worth a box."""


def draw_boxes(outcomes: Outcomes, path: Path, *, narrow: bool) -> str | None:
    """Draw one box per comparison over all iterations, with every iteration as a dot, the mean and its interval.

    Args:
        outcomes: of at least two iterations.
        path: the PNG file to write.
        narrow: for a phone.
    """
    found = list(comparisons(outcomes).values())
    if not found or len(found[0].rounds) < 2:
        return None
    with canvas(path, height=1.6 + 0.75 * len(found), narrow=narrow) as axes:
        panel = axes[0][0]
        for height, one in enumerate(reversed(found)):
            _draw_box(panel, one, height)
        panel.axvline(0, color=INK, linewidth=0.9)
        _finish(panel, [one.title for one in found], label=f"difference of the {outcomes.unit}")
    words = "; ".join(f"{one.title}: mean {shown(one.estimate)}" for one in found)
    return f"Box plots of the differences over {len(found[0].rounds)} iterations. {words}."


def has_box(values: Sequence[float]) -> bool:
    """Return whether the quartiles of differences are worth a box, and different ones.

    Args:
        values: one per iteration.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    return len(values) >= _FEW_POINTS and bool(high > low)


def _draw_box(panel: Axes, one: Comparison, height: int) -> None:
    colour, values = COLOURS[one.name], one.means
    if has_box(values):
        panel.boxplot(
            values, positions=[height + 0.1], orientation="horizontal", widths=0.18, showfliers=False,
            manage_ticks=False, boxprops={"color": MUTED}, medianprops={"color": INK}, whiskerprops={"color": MUTED},
            capprops={"color": MUTED},
        )  # fmt: skip
    panel.scatter(values, height - 0.05 - np.array(stacked(values)) * 0.38, s=16, color=colour, alpha=0.8, linewidth=0)
    _draw_mean(panel, one.estimate, height + 0.32, colour=colour)


def stacked(values: Sequence[float]) -> list[float]:
    """Return for each value how far it moves aside, in [0, 1], so that no two nearly equal ones lie on each other.

    Args:
        values: at least one.
    """
    reach = max(values) - min(values)
    places: dict[int, int] = {}
    steps = []
    for value in values:
        near = round((value - min(values)) / reach * _BINS) if reach > 0 else 0
        steps.append(places.get(near, 0))
        places[near] = steps[-1] + 1
    return [step / max(*steps, _FEWEST_STEPS) for step in steps] if steps else []


_BINS, _FEWEST_STEPS = 50, 5


def _draw_mean(panel: Axes, estimate: Estimate, height: float, *, colour: str) -> None:
    interval = estimate.interval
    if interval is not None:
        panel.plot(interval, [height] * 2, color=colour, linewidth=2.5)
    panel.scatter([estimate.mean], [height], s=46, marker="D", color=colour, zorder=3)


def draw_by_iteration(outcomes: Outcomes, path: Path, *, narrow: bool) -> str | None:
    """Draw the differences by iteration with their intervals, one panel for the filter, one against the random drop.

    Args:
        outcomes: of at least two iterations.
        path: the PNG file to write.
        narrow: for a phone.
    """
    found = comparisons(outcomes)
    if not found or len({iteration for _, iteration, _ in found["without_negatives"].rounds}) < 2:
        return None
    shown_ones = [("without_negatives", "random_drop"), ("negatives_or_random",)]
    with canvas(path, height=6.2 if narrow else 5.4, rows=2, narrow=narrow) as axes:
        for (panel,), names in zip(axes, shown_ones, strict=True):
            for number, name in enumerate(names):
                shift = 0.16 * (2 * number - (len(names) - 1))
                _draw_series(panel, found[name], shift=shift)
            panel.axhline(0, color=INK, linewidth=0.9)
            panel.set_ylabel("difference")
            # Above the panel: inside, it would cover intervals.
            panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=1 if narrow else len(names), fontsize=10)
            iteration_axis(panel, [iteration for _, iteration, _ in found[names[0]].rounds], most=5 if narrow else 8)
        axes[0][0].set_xlabel("")
        axes[1][0].set_xlabel(f"iteration, {FROM_ZERO}")
    means = by_iteration(found["negatives_or_random"])
    positive = sum(estimate.mean > 0 for estimate in means.values())
    return (
        f"Differences of the {outcomes.unit} by iteration with intervals. Without the negatives the mean is above that "
        f"of the random drop at {positive} of {len(means)} iterations."
    )


def by_iteration(comparison: Comparison) -> dict[int, Estimate]:
    """Return the mean difference of the runs for each iteration.

    Args:
        comparison: of any iterations.
    """
    iterations = sorted({iteration for _, iteration, _ in comparison.rounds})
    return {
        wanted: mean_of_estimates([one for _, iteration, one in comparison.rounds if iteration == wanted])
        for wanted in iterations
    }


def _draw_series(panel: Axes, comparison: Comparison, *, shift: float) -> None:
    colour, means = COLOURS[comparison.name], by_iteration(comparison)
    places = [iteration + shift for iteration in means]
    values = [estimate.mean for estimate in means.values()]
    ends = [estimate.interval or (estimate.mean, estimate.mean) for estimate in means.values()]
    panel.vlines(places, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.5, linewidth=1.6)
    panel.plot(places, values, color=colour, linewidth=0, marker="o", markersize=4.5, label=comparison.title)


def draw_trainings(outcomes: Outcomes, path: Path, *, narrow: bool) -> str | None:
    """Draw the trainings of a single iteration with the mean of each way, and below it the differences of the ways.

    Args:
        outcomes: of one iteration; of more nothing is drawn.
        path: the PNG file to write.
        narrow: for a phone.
    """
    if len(outcomes.compared) != 1:
        return None
    (_, one), *_ = outcomes.compared
    ways = [way for way in _WAYS if way in one.returns]
    found = list(comparisons(outcomes).values())
    before = one.means()["before"]
    with canvas(path, height=2.6 + 0.6 * (len(ways) + len(found)), rows=2, narrow=narrow) as axes:
        top, bottom = axes[0][0], axes[1][0]
        for height, way in enumerate(reversed(ways)):
            _draw_way(top, one.returns[way], height, colour=_WAYS[way][1])
        top.axvline(before, color=MUTED, linewidth=1.2, linestyle=":")
        _finish(top, [_WAYS[way][0] for way in ways], label=outcomes.unit)
        for height, comparison in enumerate(reversed(found)):
            _draw_mean(bottom, comparison.estimate, height, colour=COLOURS[comparison.name])
        bottom.axvline(0, color=INK, linewidth=0.9)
        _finish(bottom, [comparison.title for comparison in found], label=f"difference of the {outcomes.unit}")
    words = ", ".join(f"{_WAYS[way][0]} {plain(one.means()[way])}" for way in ways)
    differences = "; ".join(f"{comparison.title}: {shown(comparison.estimate)}" for comparison in found)
    return (
        f"Mean {outcomes.unit} of each training: {words}; before the iteration {plain(before)}. Differences: "
        f"{differences}."
    )


def _draw_way(panel: Axes, returns: Sequence[Sequence[float]], height: int, *, colour: str) -> None:
    means = [float(np.mean(values)) for values in returns]
    # The mean lies above its trainings, and equal ones below each other: nothing is hidden.
    panel.scatter(means, height - np.array(stacked(means)) * 0.4, s=24, color=colour, alpha=0.85, linewidth=0)
    panel.scatter([float(np.mean(means))], [height + 0.24], s=52, marker="D", color=colour, zorder=3)


def _finish(panel: Axes, titles: Sequence[str], *, label: str) -> None:
    """Name the lines of a panel, the first one at the top, and the axis."""
    panel.set_yticks(range(len(titles)), [wrapped(title, width=_TITLE_WIDTH) for title in reversed(titles)])
    panel.set_ylim(-0.6, len(titles) - 0.4)
    panel.set_xlabel(f"{label}   → better", loc="right")
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.grid(visible=True, axis="x")
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.margins(x=0.1)
