"""What happened in runs, in sentences: where they ended, how exact that is, and where they started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ippo_lightning.report.curves import CURVES, starts_of
from ippo_lightning.report.display import in_words, percent, plain
from ippo_lightning.report.measures import MEASURES, Metric
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.seed_words import spread_name
from ippo_lightning.report.starts import command_of_start, start_scores
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
    return [*finals, *_before_training(methods), *course(comparison)]


def course(comparison: Comparison) -> list[str]:
    """Return how the main numbers of the evaluations moved, from the first to the mean over the last third.

    Args:
        comparison: the runs.

    Returns:
        Complete sentences, one per number, and how to measure a start that nothing measured; empty for many methods.
    """
    methods = list(comparison.methods.values())
    if len(methods) > _MOST_METHODS:
        return []
    found: dict[str, list[str]] = {}
    for name, words in _CURVES.items():
        for method in methods:
            for lead, move in _move(method, name, words):
                found.setdefault(lead, []).append(_named(move, method, methods))
    sentences = [f"{lead} {in_words(moves)}." for lead, moves in found.items()]
    return [*sentences, *_not_measured(methods)]


def _before_training(methods: Sequence[Method]) -> list[str]:
    """Return where the first number of the final test was at the start, of the runs for which that was measured."""
    found = []
    for method in methods:
        metric = _final_metric(method)
        if metric is None or method.is_untrained:
            continue
        scores = [start_scores(run.folder, results=run.results).get(metric) for run in method.finished]
        values = [value for value in scores if value is not None]
        measure = MEASURES[metric]
        found += [_named(f"{measure.show(fmean(values))}{measure.unit}", method, methods)] if values else []
    return [f"Before training it was {in_words(found)}."] if found else []


def _final_metric(method: Method) -> Metric | None:
    return next((name for name in _FINAL if any(run.result(name) is not None for run in method.finished)), None)


def _not_measured(methods: Sequence[Method]) -> list[str]:
    """Return how to measure the starts of runs that evaluated nothing before training."""
    sentences = []
    for method in methods:
        is_known = any(0 in CURVES[name].read(run) for name in _CURVES for run in method.finished)
        is_known = is_known or any(start_scores(run.folder, results=run.results) for run in method.finished)
        if method.finished and not method.is_untrained and not is_known:
            whose = f"The start of {method.title}" if len(methods) > 1 else "The start"
            command = command_of_start(method.finished[0])
            sentences.append(f"{whose} was not measured; this command does it, and a new report has it: {command}")
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


def _move(method: Method, name: str, words: str) -> list[tuple[str, str]]:
    """Return the begin of a sentence about a curve, and how it moved or, of one value, where it was; or nothing."""
    curve = CURVES[name]
    series = [curve.read(run) for run in method.finished]
    start, late = starts_of({"": series}).get(""), _late(series)
    if start is None or late is None:
        return []
    iteration, value = start
    first = f"iteration {iteration}" if iteration else "the start"
    show: Callable[[float | None], str] = (lambda value: f"{percent(value)} %") if curve.axis == "percent" else plain
    if max(len(one) for one in series) < 2:  # one value has no course
        return [(f"At {first}, {words} was", show(value))]
    return [(f"From {first} to the last third, {words} went", f"from {show(value)} to {show(late)}")]


def _late(series: Sequence[Mapping[int, float]]) -> float | None:
    found = []
    for one in series:
        values = list(one.values())
        if values:
            found.append(fmean(values[-max(1, len(values) // 3) :]))
    return fmean(found) if found else None
