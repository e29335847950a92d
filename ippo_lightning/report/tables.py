"""The results as a table for the terminal and as markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

from rich import box
from rich.table import Table
from rich.text import Text

from ippo_lightning.report.display import MISSING, break_words, counted, escaped_markdown, percent, plain
from ippo_lightning.report.measures import MEASURES, Metric, compared_metrics
from ippo_lightning.report.sample_counts import measure_of, shown_columns
from ippo_lightning.report.seed_words import difference_words, table_spread
from ippo_lightning.report.summary import MethodSummary, PairedDifference, Results, last_third, pair_key
from ippo_lightning.storage.metric_names import shown_metric

_NAME_WIDTH = 18
"""Characters of a line with a method's name beside six columns."""
_MOST_WIDE = 6
"""Columns with room for an interval on one line."""
_SPARED = 8
"""Characters that each column leaves to the names if it has no number, and that a seventh one takes."""


def results_table(results: Results) -> Table:
    """Return the results as a table that fits 80 columns.

    Args:
        results: from `summarise`.

    Returns:
        One row per method: means over seeds in percent, below each its 95 % interval if there are several seeds; the
        kept fraction over the last third of training; median seconds per iteration.
    """
    # 80 columns is the default width of a terminal: padding and box cost as little as possible.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.title_justify = "left"
    summaries = list(results["methods"].values())
    metrics, own = shown_columns(summaries), own_columns(summaries)
    all_percent = all(measure_of(metric).is_fraction for metric in metrics)
    table.title = "Test results, %" if metrics and all_percent else "Results"
    # Whole and in lines of our own: rich would break a long name in the middle of a word.
    table.add_column("Method", overflow="fold", min_width=8)
    units = ["" if all_percent else measure_of(metric).unit for metric in metrics]
    headings = [f"{_short(metric, results)}{unit}" for metric, unit in zip(metrics, units, strict=True)]
    for heading in (*headings, *(column.short for column in own)):
        table.add_column(heading, justify="right", no_wrap=True)
    width = max(8, _NAME_WIDTH + _SPARED * (6 - len(metrics) - len(own)))
    for summary in summaries:
        cells = [_stacked(metric, summary, narrow=len(metrics) + len(own) > _MOST_WIDE) for metric in metrics]
        # Text, not str: rich would read "[bold]" in a title as markup.
        title = Text("\n".join(break_words(summary["title"], width=width)))
        table.add_row(title, *cells, *(column.show(summary) for column in own))
    table.caption = _caption(results)
    return table


def results_markdown(results: Results) -> str:
    """Return the results as markdown: the table, the paired differences, and the command that made them.

    Args:
        results: from `summarise`.

    Returns:
        Markdown that ends with a newline.
    """
    summaries = list(results["methods"].values())
    metrics, own = shown_columns(summaries), own_columns(summaries)
    titles = [f"{_short(metric, results)}{measure_of(metric).unit}" for metric in metrics]
    lines = [
        f"| {' | '.join(['Method', 'Seeds', *titles, *(column.markdown for column in own)])} |",
        f"|---|{'--:|' * (1 + len(metrics) + len(own))}",
    ]
    for summary in summaries:
        cells = [_inline(metric, summary) for metric in metrics] + [column.show(summary) for column in own]
        lines.append(f"| {' | '.join([escaped_markdown(summary['title']), str(len(summary['seeds'])), *cells])} |")
    lines += [
        "",
        _markdown_caption(results),
        *filter(None, [shared_cores_words(results)]),
        *_markdown_differences(results),
    ]
    lines += _markdown_origin(results)
    return "\n".join(lines) + "\n"


def _short(column: str, results: Results) -> str:
    return shown_metric(column, k=results.get("k")) if column == "pass_at_k" else measure_of(column).short


def kept_fraction(summary: MethodSummary) -> str:
    """Return the fraction of episodes that the update used, in the last third of training, in percent."""
    return percent(last_third(summary.get("kept_fraction", [])), digits=0)


def seconds_per_iteration(summary: MethodSummary) -> str:
    """Return the median seconds per iteration, as text."""
    return plain(median_seconds(summary))


def median_seconds(summary: MethodSummary) -> float | None:
    """Return the median seconds per iteration; None if none were measured."""
    # Not the mean: the first iteration compiles and loads, and other work on the machine slows a few.
    seconds = summary.get("iteration_seconds")
    return median(seconds) if seconds else None


def shared_cores_words(results: Results) -> str | None:
    """Return in one sentence why the seconds compare nothing; None if the runs did not share the machine."""
    jobs = results.get("jobs")
    if jobs is None or jobs < 2:
        return None
    return f"{jobs} runs at a time shared the cores, so the seconds do not compare the methods."


@dataclass(frozen=True)
class OwnColumn:
    """A column of the results that is no number of the final test."""

    short: str
    markdown: str
    title: str
    """In a report."""
    show: Callable[[MethodSummary], str]


_OWN = (
    OwnColumn("Kept", "Kept %", "Kept", kept_fraction),
    OwnColumn("s/iter", "s/iteration", "Seconds / iteration", seconds_per_iteration),
)


def own_columns(summaries: Sequence[MethodSummary]) -> list[OwnColumn]:
    """Return the columns with a number of at least one method, as `shown_metrics` does for the final test.

    Args:
        summaries: of the methods.
    """
    return [column for column in _OWN if any(column.show(summary) != MISSING for summary in summaries)]


def _markdown_caption(results: Results) -> str:
    several = any(len(summary["seeds"]) > 1 for summary in results["methods"].values())
    spread = table_spread(results)
    parts = ["means over seeds"] if several else []
    parts += [f"in brackets {spread}"] if spread else []
    parts += ["seconds: median over the iterations"]
    return f"{'; '.join(parts).capitalize()}."


def _stacked(column: str, summary: MethodSummary, *, narrow: bool) -> Text:
    show, interval = measure_of(column).show, summary["intervals"].get(column)
    text = Text(show(cast(float | None, summary.get(column))))
    if interval is not None:
        line = "\n" if narrow else ""
        text.append(f"\n{show(interval[0])}\N{EN DASH}{line}{show(interval[1])}", style="dim")
    return text


def _inline(column: str, summary: MethodSummary) -> str:
    show, interval = measure_of(column).show, summary["intervals"].get(column)
    mean = show(cast(float | None, summary.get(column)))
    return mean if interval is None else f"{mean} [{show(interval[0])}, {show(interval[1])}]"


def _caption(results: Results) -> str:
    # Methods may have different numbers of seeds: an evaluation of the start has one.
    counts = sorted({len(summary["seeds"]) for summary in results["methods"].values()})
    over = intervals_over(results)
    if not shown_columns(results["methods"].values()):
        seeds = "No final test."
    elif counts[-1] < 2:
        seeds = f"One seed per method: {f'95 % intervals over {over}' if over else 'no intervals'}."
    else:
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        spread = table_spread(results)
        seeds = f"Mean over {span} seeds{f'; below it {spread}' if spread else ''}."
    unfinished = len(results.get("unfinished", ()))
    parts = [seeds, *([f"Not finished and left out: {counted(unfinished, 'run')}."] if unfinished else [])]
    # One line for all: rich wraps it to the width of the table.
    return " ".join([*parts, *filter(None, [shared_cores_words(results)])])


def intervals_over(results: Results) -> str:
    """Return what the intervals of the table are about: `seeds`, `prompts`, or both in words; empty if none."""
    found = {summary["interval_over"] for summary in results["methods"].values()} - {None}
    return "seeds (with one seed: over prompts)" if len(found) > 1 else "".join(sorted(filter(None, found)))


def _markdown_differences(results: Results) -> list[str]:
    metrics = compared_metrics(results["methods"].values())
    if not results["differences"] or not metrics:
        return []
    titles = [f"{MEASURES[metric].short}{', points' * MEASURES[metric].is_fraction}" for metric in metrics]
    lines = ["", f"| Paired difference | Seeds | {' | '.join(titles)} |", f"|---|--:|{'--:|' * len(metrics)}"]
    titles_of = {
        pair_key(name, one["baseline"]): f"{one['title']} - {results['methods'][one['baseline']]['title']}"
        for name, one in results["methods"].items()
        if one["baseline"]
    }
    for pair, difference in results["differences"].items():
        cells = [_inline_difference(metric, difference[metric]) for metric in metrics]
        num_seeds = max(len(difference[metric]["seeds"]) for metric in metrics)
        lines.append(f"| {escaped_markdown(titles_of[pair])} | {num_seeds} | {' | '.join(cells)} |")
    # A blank line between them, or markdown would make a row of the sentence.
    notes = " ".join(filter(None, [difference_words(results).replace("Below it", "In brackets"), pairs_over(results)]))
    return [*lines, "", notes] if notes else lines


def pairs_over(results: Results) -> str:
    """Return in one sentence what the intervals of single pairs are about; empty without such intervals.

    Args:
        results: from `summarise`.
    """
    pairs = [one for found in results["differences"].values() for one in found.values()]
    if not any(pair.get("interval_over") == "prompts" for pair in pairs):
        return ""
    return (
        "The interval of a single pair of runs is over the test prompts of both: it tells whether these two models "
        "differ, and nothing about another seed."
    )


def _inline_difference(metric: Metric, difference: PairedDifference) -> str:
    show, interval = MEASURES[metric].show_difference, difference["interval"]
    shown = show(difference["mean"])
    return shown if interval is None else f"{shown} [{show(interval[0])}, {show(interval[1])}]"


def _markdown_origin(results: Results) -> list[str]:
    lines: list[str] = []
    if results.get("unfinished"):
        lines += [
            "",
            "Not finished and left out:",
            "",
            *(f"- {escaped_markdown(run)}" for run in results["unfinished"]),
        ]
    if results["command"]:
        # Three backticks inside the command would end the code block early.
        lines += ["", "```sh", results["command"].replace("```", "` ` `"), "```"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    origin = "; ".join(part for part in (results["machine"], versions) if part)
    return [*lines, "", escaped_markdown(origin)] if origin else lines
