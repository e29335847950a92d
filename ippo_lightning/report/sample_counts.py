"""Test numbers that depend on how many responses were sampled: each number of responses has a column of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from ippo_lightning.report.display import number
from ippo_lightning.report.measures import MEASURES, METRICS, Measure, Metric
from ippo_lightning.report.records import Run
from ippo_lightning.storage.metric_names import shown_metric

_COUNT_OF: Mapping[Metric, str] = MappingProxyType({"majority_vote": "samples_per_prompt", "pass_at_k": "k"})
"""Of each such number the key of the results that tells the count."""
_COLUMN: Mapping[Metric, str] = MappingProxyType({"majority_vote": "majority_vote_of_", "pass_at_k": "pass_at_"})
_SPLIT = re.compile(r"(majority_vote_of_|pass_at_)(\d+)")


def split_metrics(runs: Iterable[Run]) -> frozenset[Metric]:
    """Return the numbers that the runs have of different counts, so that one column would mix what differs.

    Args:
        runs: with final results; a run without the number has no say.
    """
    found = list(runs)
    return frozenset(
        metric
        for metric in _COUNT_OF
        if len({count_of(run, metric) for run in found if run.result(metric) is not None}) > 1
    )


def count_of(run: Run, metric: Metric) -> int | None:
    """Return how many responses a number of a run is about; None if it is about none or if that is unknown."""
    key = _COUNT_OF.get(metric)
    value = None if key is None else number((run.results or {}).get(key))
    return None if value is None else int(value)


def column_of(run: Run, metric: Metric, split: frozenset[Metric]) -> str:
    """Return the column of a run's number: the metric, or `pass_at_8` and the like if it is split.

    Args:
        run: with final results.
        metric: of the final test.
        split: from `split_metrics`.
    """
    count = count_of(run, metric) if metric in split else None
    return metric if count is None else f"{_COLUMN[metric]}{count}"


def value_in(run: Run, column: str, split: frozenset[Metric]) -> float | None:
    """Return the number that a run has in a column; None if its number is about another count.

    Args:
        run: with final results.
        column: from `column_of`.
        split: from `split_metrics`.
    """
    metric = metric_of(column)
    return run.result(metric) if column_of(run, metric, split) == column else None


def metric_of(column: str) -> Metric:
    """Return the metric of a column.

    Example:
        >>> metric_of("pass_at_8"), metric_of("majority_vote_of_4"), metric_of("reward")
        ('pass_at_k', 'majority_vote', 'reward')
    """
    found = _SPLIT.fullmatch(column)
    split = {begin: metric for metric, begin in _COLUMN.items()}
    return cast(Metric, column) if found is None else split[found[1]]


def measure_of(column: str) -> Measure:
    """Return how the numbers of a column are named, shown and judged.

    Example:
        >>> measure_of("pass_at_8").title, measure_of("majority_vote_of_4").title
        ('Pass@8', 'Majority vote of 4')
    """
    measure, found = MEASURES[metric_of(column)], _SPLIT.fullmatch(column)
    if found is None:
        return measure
    if metric_of(column) == "pass_at_k":
        name = shown_metric(column)
        return replace(measure, title=name.capitalize(), short=name)
    return replace(measure, title=f"{measure.title} of {found[2]}", short=f"{measure.short}@{found[2]}")


def shown_columns(summaries: Iterable[Any]) -> tuple[str, ...]:
    """Return the columns that a report shows: each in which at least one method has a number.

    The one rule for figures, tables and sentences: a grader that tells nothing of reasoning, or no grader at all,
    leaves no empty panel and no column of dashes.

    Args:
        summaries: of the methods, from `summarise`.
    """
    known = {key for summary in summaries for key, value in summary.items() if value is not None}
    return tuple(name for metric in METRICS for name in columns_in(metric, known))


def columns_in(metric: Metric, names: Iterable[str]) -> list[str]:
    """Return the columns of a metric among some names: its own, then those of each count from the smallest."""
    found = set(names)
    split = [name for name in found if _SPLIT.fullmatch(name) and metric_of(name) == metric]
    return [*([metric] if metric in found else []), *sorted(split, key=lambda name: int(name.rpartition("_")[2]))]
