"""The results as a table for the terminal and as markdown."""

from __future__ import annotations

from statistics import median

from rich import box
from rich.table import Table
from rich.text import Text

from ippo_lightning.report.display import MISSING, percent, plain, points
from ippo_lightning.report.summary import COMPARED, METRICS, MethodSummary, PairedDifference, Results, last_third
from ippo_lightning.storage.metric_names import shown_metric

# Short, because seven columns with intervals must fit 80 characters.
_HEADINGS = {"exact_match": "EM", "majority_vote": "MV", "unfaithful_fraction": "Unfaithful"}


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
    table.title = "Test results, %"
    table.title_justify = "left"
    # Folded and not cut, because two titles may differ at their ends only.
    table.add_column("Method", overflow="fold", min_width=8)
    for heading in (*_headings(results), "Kept", "s/iter"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in results["methods"].values():
        cells = [_stacked(summary[metric], summary["intervals"][metric]) for metric in METRICS]
        # Text, not str: rich would read "[bold]" in a title as markup.
        table.add_row(Text(summary["title"]), *cells, kept_fraction(summary), seconds_per_iteration(summary))
    table.caption = _caption(results)
    return table


def results_markdown(results: Results) -> str:
    """Return the results as markdown: the table, the paired differences, and the command that made them.

    Args:
        results: from `summarise`.

    Returns:
        Markdown that ends with a newline.
    """
    headings = " | ".join(f"{heading} %" for heading in _headings(results))
    lines = [
        f"| Method | Seeds | {headings} | Kept % | s/iteration |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for summary in results["methods"].values():
        cells = [_inline(summary[metric], summary["intervals"][metric]) for metric in METRICS]
        shown = [_escaped(summary["title"]), str(len(summary["seeds"])), *cells, kept_fraction(summary)]
        lines.append(f"| {' | '.join([*shown, seconds_per_iteration(summary)])} |")
    lines += [
        "",
        f"Means over seeds; in brackets the 95 % bootstrap interval over {intervals_over(results) or 'seeds'}. "
        "Seconds: median over the iterations.",
        *filter(None, [shared_cores_words(results)]),
        *_markdown_differences(results),
    ]
    lines += _markdown_origin(results)
    return "\n".join(lines) + "\n"


def _headings(results: Results) -> list[str]:
    return [_HEADINGS.get(metric) or shown_metric(metric, k=results.get("k")) for metric in METRICS]


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


def _stacked(mean: float | None, interval: list[float] | None) -> Text:
    text = Text(percent(mean))
    if interval is not None:
        text.append(f"\n{percent(interval[0])}\N{EN DASH}{percent(interval[1])}", style="dim")
    return text


def _inline(mean: float | None, interval: list[float] | None) -> str:
    return percent(mean) if interval is None else f"{percent(mean)} [{percent(interval[0])}, {percent(interval[1])}]"


def _caption(results: Results) -> str:
    # Methods may have different numbers of seeds: an evaluation of the start has one.
    counts = sorted({len(summary["seeds"]) for summary in results["methods"].values()})
    over = intervals_over(results)
    if counts[-1] < 2:
        seeds = f"One seed per method: {f'95 % intervals over {over}' if over else 'no intervals'}."
    else:
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        seeds = f"Mean over {span} seeds; below it the 95 % bootstrap interval{f' over {over}' if over else ''}."
    unfinished = len(results.get("unfinished", ()))
    parts = [seeds, *([f"Not finished and left out: {unfinished} runs."] if unfinished else [])]
    # One line for all: rich wraps it to the width of the table.
    return " ".join([*parts, *filter(None, [shared_cores_words(results)])])


def intervals_over(results: Results) -> str:
    """Return what the intervals of the table are about: `seeds`, `prompts`, or both in words; empty if none."""
    found = {summary["interval_over"] for summary in results["methods"].values()} - {None}
    return "seeds (with one seed: over prompts)" if len(found) > 1 else "".join(sorted(filter(None, found)))


def _markdown_differences(results: Results) -> list[str]:
    if not results["differences"]:
        return []
    lines = ["", "| Paired difference, points | Seeds | EM | Unfaithful |", "|---|--:|--:|--:|"]
    for pair, difference in results["differences"].items():
        cells = [_inline_points(difference[metric]) for metric in COMPARED]
        lines.append(f"| {_escaped(pair)} | {len(difference['exact_match']['seeds'])} | {' | '.join(cells)} |")
    return lines


def _inline_points(difference: PairedDifference) -> str:
    interval = difference["interval"]
    shown = points(difference["mean"])
    return shown if interval is None else f"{shown} [{points(interval[0])}, {points(interval[1])}]"


def _markdown_origin(results: Results) -> list[str]:
    lines: list[str] = []
    if results.get("unfinished"):
        lines += ["", "Not finished and left out:", "", *(f"- {_escaped(run)}" for run in results["unfinished"])]
    if results["command"]:
        # Three backticks inside the command would end the code block early.
        lines += ["", "```sh", results["command"].replace("```", "` ` `"), "```"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    origin = "; ".join(part for part in (results["machine"], versions) if part)
    return [*lines, "", _escaped(origin)] if origin else lines


def _escaped(text: str) -> str:
    """Escape a name, so that it cannot become markdown or HTML."""
    for character in "\\`*_[]<>|":  # the backslash first, or it would escape the escapes
        text = text.replace(character, f"\\{character}")
    return text or MISSING
