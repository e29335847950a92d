"""What happened in a run, in sentences: where it ended, how exact that is, and where it started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ippo_lightning.report.curves import CURVES, starts_of
from ippo_lightning.report.display import percent, plain
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.summary import MethodSummary, Results

_MOST_METHODS = 3
"""Methods with sentences of their own; of more, the table is shorter to read."""
_CURVES = {
    "exact_match": "exact match on validation prompts",
    "unfaithful_fraction": "the unfaithful fraction on validation prompts",
    "validation_reward": "the mean reward on validation prompts",
    "reward": "the mean reward of the sampled episodes",
}


def overview(comparison: Comparison, results: Results) -> list[str]:
    """Return the sentences below the headline of a report that compares nothing.

    Args:
        comparison: the runs.
        results: from `summarise`.

    Returns:
        Complete sentences, method by method; empty for many methods.
    """
    methods = list(comparison.methods.values())
    if len(methods) > _MOST_METHODS:
        return []
    return [
        # A method alone needs no name.
        f"{method.title}: {sentence}" if len(methods) > 1 else sentence[:1].upper() + sentence[1:]
        for method in methods
        for sentence in (_final(method, results["methods"][method.name]), *_changes(method))
        if sentence
    ]


def _final(method: Method, summary: MethodSummary) -> str | None:
    """Return the final exact match with its interval; without a grader, the final reward."""
    match, interval = summary["exact_match"], summary["intervals"]["exact_match"]
    if match is None:
        rewards = [reward for run in method.finished if (reward := run.result("reward")) is not None]
        return f"the mean reward on the test prompts is {plain(fmean(rewards))}." if rewards else None
    sentence = f"{percent(match)} % of the responses to the test prompts are right"
    if interval is None:
        return f"{sentence}."
    span = f"95 % interval over {summary['interval_over']} {percent(interval[0])} to {percent(interval[1])} %"
    return f"{sentence} ({span})."


def _changes(method: Method) -> list[str]:
    """Return how the main numbers moved, from the start to the mean over the last third."""
    sentences = []
    for name, words in _CURVES.items():
        curve = CURVES[name]
        series = [curve.read(run) for run in method.finished]
        start = starts_of({"": series}).get("")
        late = _late(series)
        # One value has no course.
        if start is None or late is None or max(len(one) for one in series) < 2:
            continue
        show: Callable[[float | None], str] = (
            (lambda value: f"{percent(value)} %") if curve.axis == "percent" else plain
        )
        sentences.append(f"{words} went from {show(start[1])} at the start to {show(late)} in the last third.")
    return sentences


def _late(series: Sequence[Mapping[int, float]]) -> float | None:
    found = []
    for one in series:
        values = list(one.values())
        if values:
            found.append(fmean(values[-max(1, len(values) // 3) :]))
    return fmean(found) if found else None
