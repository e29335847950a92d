"""Tables of what a selector is worth: its pair at equal cost, and what it recognises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ippo_lightning.report.display import MISSING, escaped_markdown, in_words, percent
from ippo_lightning.report.equal_compute import COSTS, EqualCost
from ippo_lightning.report.measures import COMPARED, MEASURES, ComparedMetric
from ippo_lightning.report.misleading import Detection, why_not_judged
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.summary import Results, pair_key
from ippo_lightning.report.tables import shared_cores_words

MISLEADING = (
    "An episode is misleading if its update makes a response that is not faithful more likely, or a faithful one less "
    "likely."
)
"""What the word means, in one sentence."""
SECONDS_NOISE = (
    "Seconds also depend on what else the machine does: two methods that do the same work differ there by chance, so "
    "a small difference at equal seconds is no finding."
)
_WHOLE = 0.995
"""A run that is cut after this fraction of its iterations is called whole."""


@dataclass(frozen=True)
class EqualCell:
    """A difference at one cost, as the tables show it."""

    mean: float
    interval: list[float] | None
    cut: str
    """Which of the two was cut, and where; empty if neither was."""


@dataclass(frozen=True)
class EqualRow:
    """A pair of methods."""

    name: str
    title: str
    baseline_title: str
    cells: Mapping[ComparedMetric, list[EqualCell | None]]
    """In the order of the costs of the table; None for a cost or metric that was not recorded."""


def equal_costs(equal: Mapping[str, Mapping[str, EqualCost]]) -> list[str]:
    """Return the names of the costs that at least one pair has, in their order."""
    return [cost for cost in COSTS if any(cost in views for views in equal.values())]


def equal_metrics(equal: Mapping[str, Mapping[str, EqualCost]]) -> list[ComparedMetric]:
    """Return the metrics that at least one pair has, in their order; not the reward of a graded test."""
    views = [view for by_cost in equal.values() for view in by_cost.values()]
    found = [metric for metric in COMPARED if any(metric in view["differences"] for view in views)]
    return [metric for metric in found if not (metric == "reward" and "exact_match" in found)]


def equal_rows(equal: Mapping[str, Mapping[str, EqualCost]], results: Results) -> list[EqualRow]:
    """Return one row per pair, in the order of the methods.

    Args:
        equal: from `equal_compute`.
        results: from `summarise`.
    """
    rows = []
    for name, summary in results["methods"].items():
        views = equal.get(pair_key(name, summary["baseline"])) if summary["baseline"] else None
        if views and summary["baseline"]:
            cells = {m: [_cell(views.get(cost), m) for cost in equal_costs(equal)] for m in equal_metrics(equal)}
            rows.append(EqualRow(name, summary["title"], results["methods"][summary["baseline"]]["title"], cells))
    return rows


def seconds_words(equal: Mapping[str, Mapping[str, EqualCost]], results: Results) -> str:
    """Return in one sentence what a difference at equal seconds is worth, or why there is none; empty without pairs.

    Args:
        equal: from `equal_compute`.
        results: from `summarise`.
    """
    if not equal:
        return ""
    return shared_cores_words(results) or (SECONDS_NOISE if "seconds" in equal_costs(equal) else "")


def not_judged_words(comparison: Comparison, detections: Mapping[str, Detection]) -> str:
    """Return in one sentence which trained methods the table of recognition lacks, and why; empty if it lacks none.

    Args:
        comparison: the runs.
        detections: by method, from `detection`.
    """
    reasons: dict[str, list[str]] = {}
    for name, method in comparison.methods.items():
        if name not in detections and method.finished and not method.is_untrained:
            reasons.setdefault(why_not_judged(method), []).append(method.title)
    listed = [f"{in_words(titles)} ({reason})" for reason, titles in reasons.items()]
    return f"Not in the table: {'; '.join(listed)}." if listed else ""


def selection_markdown(
    equal: Mapping[str, Mapping[str, EqualCost]],
    detections: Mapping[str, Detection],
    results: Results,
    *,
    not_judged: str = "",
    words: Callable[[str], str] = str,
) -> str:
    """Return both tables as markdown; empty without data.

    Args:
        equal: from `equal_compute`.
        detections: by method, from `detection`.
        results: from `summarise`.
        not_judged: from `not_judged_words`.
        words: from `wording`.
    """
    lines: list[str] = []
    titles = [words(COSTS[cost][0]) for cost in equal_costs(equal)]
    for metric in equal_metrics(equal):
        unit = ", points" if MEASURES[metric].is_fraction else ""
        lines += [
            "",
            f"| {MEASURES[metric].title}{unit}, minus baseline at equal | {' | '.join(titles)} |",
            f"|---|{'--:|' * len(titles)}",
        ]
        lines += [
            f"| {escaped_markdown(row.title)} - {escaped_markdown(row.baseline_title)} | "
            f"{' | '.join(_inline(cell, metric) for cell in row.cells[metric])} |"
            for row in equal_rows(equal, results)
        ]
    note = seconds_words(equal, results)
    lines += ["", note] if lines and note else []
    if detections:
        lines += [
            "",
            "| What is recognised, % | advantage 0 | misleading | dropped | precision | recall | AUC of dropping "
            "| AUC of scores |",
            f"|---|{'--:|' * 7}",
        ]
        for name, found in detections.items():
            cells = [percent(found[name]) for name in ("advantage_0", "misleading", "dropped")]
            cells += [
                _rate(found["precision"], found["intervals"]["precision"]),
                _rate(found["recall"], found["intervals"]["recall"]),
                _rate(found["dropped_auc"], found["intervals"]["dropped_auc"]),
                _rate(found["score_auc"], found["intervals"]["score_auc"]),
            ]
            lines.append(f"| {escaped_markdown(results['methods'][name]['title'])} | {' | '.join(cells)} |")
        lines += ["", f"{MISLEADING} Episodes with advantage 0 are not judged. {escaped_markdown(not_judged)}".strip()]
    return "\n".join(lines) + "\n" if lines else ""


def _cell(view: EqualCost | None, metric: ComparedMetric) -> EqualCell | None:
    difference = view["differences"].get(metric) if view else None
    if view is None or difference is None:
        return None
    cut = ""
    if max(view["baseline_used"], view["method_used"]) < _WHOLE:
        # other evaluations, or another one of the two in some seeds
        method, baseline = (percent(view[name], digits=0) for name in ("method_used", "baseline_used"))
        cut = f"method cut at {method} %, baseline at {baseline} %"
    elif view["baseline_used"] < _WHOLE:
        cut = f"baseline cut at {percent(view['baseline_used'], digits=0)} %"
    elif view["method_used"] < _WHOLE:
        cut = f"method cut at {percent(view['method_used'], digits=0)} %"
    return EqualCell(difference["mean"], difference["interval"], cut)


def _inline(cell: EqualCell | None, metric: ComparedMetric) -> str:
    if cell is None:
        return MISSING
    show = MEASURES[metric].show_difference
    interval = f" [{show(cell.interval[0])}, {show(cell.interval[1])}]" if cell.interval else ""
    return f"{show(cell.mean)}{interval}{f' ({cell.cut})' if cell.cut else ''}"


def _rate(value: float | None, interval: list[float] | None) -> str:
    return f"{percent(value)} [{percent(interval[0])}, {percent(interval[1])}]" if interval else percent(value)
