"""Figures of a comparison. Each function writes one PNG, or nothing if the runs contain no data for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ippo_lightning.report.canvas import (
    FAINT,
    INK,
    KEPT_COLOUR,
    MUTED,
    PART_COLOURS,
    canvas,
    draw_curve,
    label_ends,
    method_colours,
    percent_axis,
    percent_formatter,
)
from ippo_lightning.report.display import percent, plain
from ippo_lightning.report.histogram import plot_score_histogram
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.report.summary import bootstrap_interval

__all__ = [
    "plot_effective_sample_size",
    "plot_exact_match",
    "plot_iteration_seconds",
    "plot_kept_fraction",
    "plot_results",
    "plot_score_histogram",
    "plot_score_quantiles",
    "plot_time_parts",
    "plot_unfaithful_fraction",
]

# The first key that a run recorded counts: a run without the influence filter has only the time of all callbacks.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "rollout": ("time/rollout_seconds",),
    "reward": ("time/reward_seconds",),
    "update": ("time/update_seconds",),
    "influence": ("time/influence_seconds", "time/plan_seconds"),
}
_REST = "rest"
_QUANTILES = ("q10", "q25", "median", "q75", "q90")
_MOST_PANELS = 3  # more would be too narrow to read


def plot_results(comparison: Comparison, path: Path) -> str | None:
    """Draw the final exact match and unfaithful fraction: one dot per seed, the mean, the 95 % interval.

    All functions of this module have the same arguments and the same kind of result.

    Args:
        comparison: from `read_comparison`.
        path: the PNG file to write.

    Returns:
        The figure in words, for the alternative text; None if there is nothing to draw.
    """
    methods = [method for method in comparison.methods.values() if method.finished]
    if not methods:
        return None
    colours = method_colours(comparison)
    panels = {"exact_match": "Exact match", "unfaithful_fraction": "Unfaithful fraction"}
    with canvas(path, height=1.5 + 0.42 * len(methods), columns=2) as axes:
        for panel, (metric, title), arrow in zip(axes[0], panels.items(), ("→ better", "← better"), strict=True):
            # The vertical axis counts upwards; reversed, the first method of the tables is at the top here too.
            for height, method in enumerate(reversed(methods)):
                _draw_result(panel, method, metric, height=height, colour=colours[method.name])
            panel.set_title(title)
            panel.set_xlabel(arrow, loc="right" if arrow.startswith("→") else "left")
            panel.set_ylim(-0.6, len(methods) - 0.4)
            panel.set_yticks(range(len(methods)), [method.title for method in reversed(methods)])
            panel.grid(visible=True, axis="x")
            panel.grid(visible=False, axis="y")
            panel.spines["left"].set_visible(False)
            panel.margins(x=0.12)
            panel.xaxis.set_major_locator(MaxNLocator(4))
            panel.xaxis.set_major_formatter(percent_formatter())
        axes[0][1].set_yticklabels([])  # the panel on the left has the names
    return f"Final results of each method, with seeds and intervals. {_final_words(methods)}"


def plot_exact_match(comparison: Comparison, path: Path) -> str | None:
    """Draw exact match on the validation prompts over the iterations. See `plot_results`."""
    return _plot_curves(
        comparison,
        path,
        series=lambda run: run.validation("exact_match"),
        title="Exact match on validation prompts",
        as_percent=True,
    )


def plot_unfaithful_fraction(comparison: Comparison, path: Path) -> str | None:
    """Draw the fraction of right answers with unfaithful reasoning, on validation prompts. See `plot_results`."""
    return _plot_curves(
        comparison,
        path,
        series=lambda run: run.validation("unfaithful_fraction"),
        title="Unfaithful fraction on validation prompts",
        as_percent=True,
    )


def plot_kept_fraction(comparison: Comparison, path: Path) -> str | None:
    """Draw the fraction of episodes that the update used. See `plot_results`."""
    return _plot_curves(
        comparison,
        path,
        series=lambda run: run.series("update/kept_fraction"),
        title="Episodes kept for the update",
        as_percent=True,
    )


def plot_iteration_seconds(comparison: Comparison, path: Path) -> str | None:
    """Draw the seconds of each iteration. See `plot_results`."""
    return _plot_curves(
        comparison,
        path,
        series=lambda run: run.series("time/iteration_seconds"),
        title="Seconds per iteration",
        as_percent=False,
    )


def plot_effective_sample_size(comparison: Comparison, path: Path) -> str | None:
    """Draw the effective sample size of the weights, (sum w)^2 / sum w^2. See `plot_results`."""
    return _plot_curves(
        comparison,
        path,
        series=lambda run: run.series("influence/effective_sample_size"),
        title="Effective sample size, episodes",
        as_percent=False,
    )


def plot_score_quantiles(comparison: Comparison, path: Path) -> str | None:
    """Draw the quantiles of the scores by iteration, one panel per method. See `plot_results`."""
    scored = [
        method
        for method in comparison.methods.values()
        if any(run.series("influence/score_median") for run in method.finished)
    ][:_MOST_PANELS]
    if not scored:
        return None
    words = []
    with canvas(path, height=3.4, columns=len(scored)) as axes:
        for panel, method in zip(axes[0], scored, strict=True):
            fan = {name: _mean_series(method, f"influence/score_{name}") for name in _QUANTILES}
            # A run may have recorded some quantiles only; a band needs all of them at the same iteration.
            iterations = sorted(set.intersection(*(set(series) for series in fan.values())))
            lines = {name: [series[iteration] for iteration in iterations] for name, series in fan.items()}
            for low, high, strength in (("q10", "q90", 0.18), ("q25", "q75", 0.32)):
                panel.fill_between(iterations, lines[low], lines[high], color=KEPT_COLOUR, alpha=strength, linewidth=0)
            panel.plot(iterations, lines["median"], color=KEPT_COLOUR)
            panel.axhline(0, color=INK, linewidth=0.9)
            panel.set_title(method.title)
            panel.set_xlabel("iteration")
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if iterations:
                last = (plain(lines[name][-1]) for name in ("q10", "median", "q90"))
                words.append(f"{method.title} at the end: {', '.join(last)}")
        axes[0][0].set_ylabel("influence score")
    return f"10 % quantile, median and 90 % quantile of the scores by iteration. {'; '.join(words)}."


def _mean_series(method: Method, key: str) -> dict[int, float]:
    """Return, for each iteration, the mean of a number over the seeds that reached it."""
    series = [run.series(key) for run in method.finished]
    # All iterations of all seeds: one run that stopped early must not cut off the curve of the others.
    iterations = sorted({iteration for one in series for iteration in one})
    found = {iteration: [one[iteration] for one in series if iteration in one] for iteration in iterations}
    return {iteration: sum(values) / len(values) for iteration, values in found.items()}


def plot_time_parts(comparison: Comparison, path: Path) -> str | None:
    """Draw how the seconds of an iteration are spent, one bar per method. See `plot_results`."""
    times = {method.title: parts for method in comparison.methods.values() if (parts := _time_parts(method))}
    if not times:
        return None
    names = [name for name in (*_PARTS, _REST) if any(parts.get(name) for parts in times.values())]
    tallest = max(sum(parts.values()) for parts in times.values())
    # The figure grows with the methods, so that bars and names keep their size.
    with canvas(path, height=1.5 + 0.42 * len(times)) as axes:
        panel = axes[0][0]
        for height, parts in enumerate(reversed(times.values())):
            left = 0.0
            for name, colour in zip((*_PARTS, _REST), PART_COLOURS, strict=True):
                width = parts.get(name, 0.0)
                panel.barh(height, width, left=left, color=colour, height=0.62, edgecolor="white", linewidth=0.8)
                left += width
            panel.text(left + 0.012 * tallest, height, f"{plain(left)} s", va="center", fontsize=9.5)
        panel.set_title("Time per iteration by stage", pad=28)
        colours = dict(zip((*_PARTS, _REST), PART_COLOURS, strict=True))
        # The legend takes its colours from empty bars: the drawn ones may lack a stage.
        swatches = [panel.barh(0, 0, color=colours[name]) for name in names]
        panel.legend(
            swatches,
            names,
            loc="lower left",
            bbox_to_anchor=(-0.01, 0.99),
            ncols=5,
            fontsize=9.5,
            handlelength=1,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
        panel.set_yticks(range(len(times)), list(reversed(times)))
        # Room for the number behind the longest bar.
        panel.set_xlim(0, 1.12 * tallest)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("seconds, mean over iterations and seeds")
    totals = ", ".join(f"{title} {plain(sum(parts.values()))} s" for title, parts in times.items())
    return f"Mean seconds of an iteration, split into {', '.join(names)}: {totals}."


def _plot_curves(
    comparison: Comparison,
    path: Path,
    *,
    series: Callable[[Run], Mapping[int, float]],
    title: str,
    as_percent: bool,
) -> str | None:
    curves = {name: [series(run) for run in method.finished] for name, method in comparison.methods.items()}
    curves = {name: found for name, found in curves.items() if any(found)}  # without methods that never recorded it
    if not curves:
        return None
    colours = method_colours(comparison)
    # Of every seed and not of the means, so that the bands lie inside the axis.
    values = [value for found in curves.values() for one in found for value in one.values()]
    ends: list[tuple[str, str, float, float]] = []
    with canvas(path) as axes:
        panel = axes[0][0]
        for name, found in curves.items():
            end = draw_curve(panel, found, colour=colours[name])
            if end is not None:
                ends.append((name, colours[name], *end))
        if as_percent:
            percent_axis(panel, values)
        else:
            # From zero, so that a ratio looks like what it is; 1e-9, because matplotlib warns of equal limits.
            panel.set_ylim(0, 1.08 * max([*values, 1e-9]))
        panel.set_title(title)
        panel.set_xlabel("iteration")
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        panel.margins(x=0.01)
        label_ends(panel, _merged(ends, comparison))
    shown = percent if as_percent else plain
    unit = " %" if as_percent else ""
    last = ", ".join(f"{comparison.methods[name].title} {shown(height)}{unit}" for name, _, _, height in ends)
    return f"{title}, by iteration. At the end: {last}."


def _merged(ends: list[tuple[str, str, float, float]], comparison: Comparison) -> list[tuple[str, str, float, float]]:
    """Give curves that end in exactly the same point one common label, in the colour of text."""
    # `label_ends` moves labels apart. Two at one point would look like curves that end in different points.
    merged: list[tuple[str, str, float, float]] = []
    # `groupby` joins neighbours only, so the ends are sorted first.
    for point, group in groupby(sorted(ends, key=lambda end: end[2:]), key=lambda end: end[2:]):
        members = list(group)
        text = ", ".join(comparison.methods[name].title for name, *_ in members)
        merged.append((text, members[0][1] if len(members) == 1 else INK, *point))
    return merged


def _draw_result(panel: Axes, method: Method, metric: str, *, height: int, colour: str) -> None:
    values = [value for run in method.finished if (value := run.result(metric)) is not None]
    if not values:
        # x in parts of the panel: without data the axis has no meaningful position.
        panel.text(0.02, height, "no data", va="center", color=MUTED, fontsize=9, transform=panel.get_yaxis_transform())
        return
    mean = sum(values) / len(values)
    interval = bootstrap_interval(values)
    panel.axhline(height, color=FAINT, linewidth=0.8, zorder=0)
    # With one seed, its dot is the mean itself.
    if interval is not None:
        panel.plot(interval, [height, height], color=colour, linewidth=8, alpha=0.28, zorder=2, solid_capstyle="butt")
        panel.scatter(values, [height] * len(values), s=13, color=colour, linewidths=0, zorder=3)
    panel.scatter([mean], [height], s=64, color=colour, edgecolors="white", linewidths=1.2, zorder=4)
    panel.annotate(
        percent(mean), (mean, height), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9, color=INK
    )


def _final_words(methods: list[Method]) -> str:
    words = []
    for method in methods:
        means = []
        for metric in ("exact_match", "unfaithful_fraction"):
            values = [value for run in method.finished if (value := run.result(metric)) is not None]
            means.append(percent(sum(values) / len(values) if values else None))
        words.append(f"{method.title}: exact match {means[0]} %, unfaithful {means[1]} %.")
    return " ".join(words)


def _time_parts(method: Method) -> dict[str, float]:
    """Return the mean seconds of each stage, and of the rest; empty if no stage was timed."""
    parts: dict[str, float] = {}
    for name, keys in _PARTS.items():
        seconds = [value for run in method.finished for value in run.series(*keys).values()]
        if seconds:
            parts[name] = max(0.0, sum(seconds) / len(seconds))
    totals = [value for run in method.finished for value in run.series("time/iteration_seconds").values()]
    if parts and totals:
        # Stages and total have clocks of their own; their difference may be slightly negative.
        parts[_REST] = max(0.0, sum(totals) / len(totals) - sum(parts.values()))
    return parts
