"""What a resumed run owes its loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.fabric.loggers import CSVLogger


def log_again(
    loggers: Iterable[Any], *, history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    """Give a CSV logger, which begins its file anew, the lines of the run so far; other loggers append by themselves.

    Args:
        loggers: of the run.
        history: one record an iteration.
        evaluations: one record an evaluation, with the number of iterations before it.
    """
    rows = [(row["iteration"], 1, logged_iteration(row)) for row in history]
    rows += [(row["iteration"], 0, logged_evaluation(row)) for row in evaluations]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            for step, _, metrics in sorted(rows, key=lambda row: row[:2]):
                logger.log_metrics(metrics, step=step)


def logged_iteration(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what loggers get of an iteration's record."""
    return {name: value for name, value in row.items() if name not in ("iteration", "max_iterations")}


def logged_evaluation(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what loggers get of an evaluation's record."""
    return {f"eval/{name}": value for name, value in row.items() if name not in ("iteration", "split")}
