"""Figures of results, scores and time. Each function writes one PNG, or nothing if the runs contain no data for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ippo_lightning.report.canvas import (
    FAINT,
    INK,
    MUTED,
    PART_COLOURS,
    canvas,
    iteration_axis,
    method_colours,
    percent_formatter,
    wrapped,
)
from ippo_lightning.report.display import plain
from ippo_lightning.report.measures import COMPARED, MEASURES, ComparedMetric, compared_among
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.score_axis import draw_powers, range_of_scales, score_label
from ippo_lightning.report.summary import FEW_SEEDS, mean_by_iteration, metric_intervals

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
_TITLE_WIDTHS = {1: 56, 2: 25, 3: 15}
"""Characters of a title, by the number of panels that share the width."""
_NAME_WIDTH = 20
"""Characters of a name beside the axis: longer ones would leave no room for the numbers."""


def plot_results(comparison: Comparison, path: Path) -> str | None:
    """Draw the compared numbers of the final test, one panel each: one dot per seed, the mean, the interval, the start.

    All functions of this module have the same arguments and the same kind of result.

    Args:
        comparison: from `read_comparison`.
        path: the PNG file to write.

    Returns:
        The figure in words, for the alternative text; None if there is nothing to draw.
    """
    methods = [method for method in comparison.methods.values() if method.finished]
    metrics = list(compared_among(metric for metric in COMPARED if any(_values(method, metric) for method in methods)))
    if not metrics:
        return None
    colours = method_colours(comparison)
    with canvas(path, height=1.5 + 0.42 * len(methods), columns=len(metrics)) as axes:
        for panel, metric in zip(axes[0], metrics, strict=True):
            # The vertical axis counts upwards; reversed, the first method of the tables is at the top here too.
            for height, method in enumerate(reversed(methods)):
                _draw_result(panel, method, metric, height=height, colour=colours[method.name])
            for method in methods:
                _draw_start(panel, method, metric)
            _set_result_axes(panel, metric, methods)
        for panel in axes[0][1:]:
            panel.set_yticklabels([])  # the panel on the left has the names
    return f"Final results of each method, with seeds and intervals. {_final_words(methods, metrics)}"


def results_legend(comparison: Comparison) -> str:
    """Return what the marks of `plot_results` mean, of those that it draws.

    Args:
        comparison: as drawn.
    """
    drawn = [
        (method, metric, values)
        for method in comparison.methods.values()
        for metric in COMPARED
        if (values := _values(method, metric))
    ]
    several = any(len(values) > 1 for *_, values in drawn)
    parts = ["large dot: mean", "small dots: seeds"] if several else ["dot: the result of one run"]
    bars = dict.fromkeys(bar for method, metric, values in drawn if (bar := _bar_words(method, metric, len(values))))
    parts += [f"bar: {' or '.join(bars)}"] if bars else []
    parts += ["dotted: a method that was not trained here"] if any(method.is_untrained for method, *_ in drawn) else []
    words = "; ".join(parts)
    return f"{words[0].upper()}{words[1:]}."


def _bar_words(method: Method, metric: ComparedMetric, num_values: int) -> str:
    intervals, over = metric_intervals(method, [metric])
    if intervals[metric] is None:
        return ""
    if over == "prompts":
        return "95 % interval over the test prompts of a single run"
    return "95 % interval over seeds" if num_values >= FEW_SEEDS else "range of the seeds"


def _set_result_axes(panel: Axes, metric: ComparedMetric, methods: list[Method]) -> None:
    measure = MEASURES[metric]
    panel.set_title(measure.title)
    panel.set_xlabel("→ better" if measure.good > 0 else "← better", loc="right" if measure.good > 0 else "left")
    panel.set_ylim(-0.6, len(methods) - 0.4)
    titles = [wrapped(method.title, width=_NAME_WIDTH) for method in reversed(methods)]
    panel.set_yticks(range(len(methods)), titles)
    panel.grid(visible=True, axis="x")
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.margins(x=0.12)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    if measure.is_fraction:
        panel.xaxis.set_major_formatter(percent_formatter())


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
    colours = method_colours(comparison)
    with canvas(path, height=3.4, columns=len(scored)) as axes:
        for panel, method in zip(axes[0], scored, strict=True):
            colour = colours[method.name]
            fan = {name: _mean_series(method, f"influence/score_{name}") for name in _QUANTILES}
            # A run may have recorded some quantiles only; a band needs all of them at the same iteration.
            iterations = sorted(set.intersection(*(set(series) for series in fan.values())))
            lines = {name: [series[iteration] for iteration in iterations] for name, series in fan.items()}
            for low, high, strength in (("q10", "q90", 0.18), ("q25", "q75", 0.32)):
                panel.fill_between(iterations, lines[low], lines[high], color=colour, alpha=strength, linewidth=0)
            # A line of one point is not seen.
            panel.plot(iterations, lines["median"], color=colour, marker="o" if len(iterations) < 3 else None)
            panel.axhline(0, color=INK, linewidth=0.9)
            linear = range_of_scales([max(map(abs, at), default=0.0) for at in zip(*lines.values(), strict=True)])
            if linear is not None:
                draw_powers(panel, "y", linear)
            panel.set_title(wrapped(method.title, width=_TITLE_WIDTHS[len(scored)]))
            iteration_axis(panel, iterations, most=4)
            if iterations:
                last = (plain(lines[name][-1]) for name in ("q10", "median", "q90"))
                words.append(f"{method.title} at the end: {', '.join(last)}")
        axes[0][0].set_ylabel(score_label(axes[0][0].get_yscale()))
    return f"10 % quantile, median and 90 % quantile of the scores by iteration. {'; '.join(words)}."


def _mean_series(method: Method, key: str) -> dict[int, float]:
    """Return, for each iteration, the mean of a number over the seeds that reached it."""
    series = [run.series(key) for run in method.finished]
    # All iterations of all seeds: one run that stopped early must not cut off the curve of the others.
    iterations = sorted({iteration for one in series for iteration in one})
    found = {iteration: [one[iteration] for one in series if iteration in one] for iteration in iterations}
    # Counted from 1, as the curves are.
    return {iteration + 1: sum(values) / len(values) for iteration, values in found.items()}


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
        panel.set_yticks(range(len(times)), [wrapped(title, width=_NAME_WIDTH) for title in reversed(times)])
        # Room for the number behind the longest bar.
        panel.set_xlim(0, 1.12 * tallest)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("seconds, median over iterations")
    totals = ", ".join(f"{title} {plain(sum(parts.values()))} s" for title, parts in times.items())
    return f"Median seconds of an iteration, split into {', '.join(names)}: {totals}."


def _draw_result(panel: Axes, method: Method, metric: ComparedMetric, *, height: int, colour: str) -> None:
    values = _values(method, metric)
    if not values:
        # x in parts of the panel: without data the axis has no meaningful position.
        panel.text(0.02, height, "no data", va="center", color=MUTED, fontsize=9, transform=panel.get_yaxis_transform())
        return
    mean = sum(values) / len(values)
    interval = metric_intervals(method, [metric])[0][metric]
    panel.axhline(height, color=FAINT, linewidth=0.8, zorder=0)
    if interval is not None:
        panel.plot(interval, [height, height], color=colour, linewidth=8, alpha=0.28, zorder=2, solid_capstyle="butt")
    # With one seed, its dot is the mean itself.
    if len(values) > 1:
        panel.scatter(values, [height] * len(values), s=13, color=colour, linewidths=0, zorder=3)
    panel.scatter([mean], [height], s=64, color=colour, edgecolors="white", linewidths=1.2, zorder=4)
    panel.annotate(
        MEASURES[metric].show(mean),
        (mean, height),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=INK,
    )


def _draw_start(panel: Axes, method: Method, metric: ComparedMetric) -> None:
    """Draw a dotted line where a method stands that was not trained here: the others started from it."""
    values = _values(method, metric)
    if method.is_untrained and values:
        panel.axvline(sum(values) / len(values), color=MUTED, linewidth=1.3, linestyle=(0, (1, 2)), zorder=1)


def _values(method: Method, metric: ComparedMetric) -> list[float]:
    return [value for run in method.finished if (value := run.result(metric)) is not None]


def _final_words(methods: list[Method], metrics: list[ComparedMetric]) -> str:
    words = []
    for method in methods:
        means = []
        for metric in metrics:
            values, measure = _values(method, metric), MEASURES[metric]
            shown = measure.show(sum(values) / len(values) if values else None)
            means.append(f"{measure.title.lower()} {shown}{measure.unit}")
        words.append(f"{method.title}: {', '.join(means)}.")
    return " ".join(words)


def _time_parts(method: Method) -> dict[str, float]:
    """Return the seconds of each stage, which add up to the median of an iteration; empty if no stage was timed."""
    seconds: dict[str, list[float]] = {}
    # As in the tables: of the mean over seeds, iteration by iteration.
    whole = list(mean_by_iteration(method.finished, "time/iteration_seconds"))
    for run in method.finished:
        stages = {name: series for name, keys in _PARTS.items() if (series := run.series(*keys))}
        for name, series in stages.items():
            seconds.setdefault(name, []).extend(series.values())
    # Medians: a pause of the machine would otherwise look like a stage that is slow.
    parts = {name: max(0.0, median(values)) for name, values in seconds.items()}
    if not parts or not whole:
        return parts
    # Medians of stages do not add up to the median of the whole, which is the number that the tables show.
    staged = sum(parts.values())
    if staged > median(whole):
        return {name: value * median(whole) / staged for name, value in parts.items()}
    return {**parts, _REST: median(whole) - staged}
