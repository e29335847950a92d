"""What happened in runs, in sentences: where they ended, how exact that is, and where they started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ippo_lightning.report.curves import CURVES, starts_of
from ippo_lightning.report.display import in_words, percent, plain
from ippo_lightning.report.measures import MEASURES, Metric
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.seed_words import spread_name
from ippo_lightning.report.summary import MethodSummary, Results

_MOST_METHODS = 3
"""Methods with sentences of their own; of more, the table is shorter to read."""
# Evaluations only: each iteration samples other prompts, so their rewards also differ by the choice of the prompts.
_CURVES = {
    "exact_match": "exact match on validation prompts",
    "unfaithful_fraction": "the unfaithful fraction on validation prompts",
    "validation_reward": "the mean reward on validation prompts",
    "validation_return": "the mean return of validation episodes",
}
_FINAL: Mapping[Metric, str] = {
    "exact_match": "The fraction of right responses to the test prompts",
    "reward": "The mean reward on the test prompts",
    "episode_return": "The mean return of the test episodes",
}
"""The first one that a run has is told."""


def overview(comparison: Comparison, results: Results) -> list[str]:
    """Return the sentences below the headline of a report that compares nothing.

    Args:
        comparison: the runs.
        results: from `summarise`.

    Returns:
        Complete sentences, one per number with all methods; empty for many methods.
    """
    methods = list(comparison.methods.values())
    if len(methods) > _MOST_METHODS:
        return []
    found: dict[str, list[str]] = {}
    for method in methods:
        subject, value = _final(method, results["methods"][method.name])
        if value:
            found.setdefault(subject, []).append(_named(value, method, methods))
    finals = [f"{subject} is {in_words(values)}." for subject, values in found.items()]
    return [*finals, *course(comparison)]


def course(comparison: Comparison) -> list[str]:
    """Return how the main numbers of the evaluations moved, from the start to the mean over the last third.

    Args:
        comparison: the runs.

    Returns:
        Complete sentences, one per number; empty for many methods.
    """
    methods = list(comparison.methods.values())
    if len(methods) > _MOST_METHODS:
        return []
    sentences = []
    for name, words in _CURVES.items():
        moves = [_named(move, method, methods) for method in methods if (move := _move(method, name))]
        sentences += [f"From the start to the last third, {words} went {in_words(moves)}."] if moves else []
    return sentences


def _named(words: str, method: Method, methods: Sequence[Method]) -> str:
    return f"{words} in {method.title}" if len(methods) > 1 else words  # a method alone needs no name


def _final(method: Method, summary: MethodSummary) -> tuple[str, str]:
    """Return the first number of the final test in words, with its interval; empty without one."""
    for metric, subject in _FINAL.items():
        value, measure = summary.get(metric), MEASURES[metric]
        if not isinstance(value, float):
            continue
        interval = summary["intervals"].get(metric)
        shown = f"{measure.show(value)}{measure.unit}"
        if interval is not None:
            span = f"{measure.show(interval[0])} to {measure.show(interval[1])}{measure.unit}"
            name = spread_name(len(summary["seeds"]))
            over = f" over {summary['interval_over']}" if name == spread_name(1) else ""
            shown += f" ({name}{over} {span})"
        return subject, shown
    return "", ""


def _move(method: Method, name: str) -> str | None:
    """Return how a curve moved; None without two values."""
    curve = CURVES[name]
    series = [curve.read(run) for run in method.finished]
    start, late = starts_of({"": series}).get(""), _late(series)
    # One value has no course.
    if start is None or late is None or max(len(one) for one in series) < 2:
        return None
    show: Callable[[float | None], str] = (lambda value: f"{percent(value)} %") if curve.axis == "percent" else plain
    return f"from {show(start[1])} to {show(late)}"


def _late(series: Sequence[Mapping[int, float]]) -> float | None:
    found = []
    for one in series:
        values = list(one.values())
        if values:
            found.append(fmean(values[-max(1, len(values) // 3) :]))
    return fmean(found) if found else None
