"""What a resumed run logs again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.fabric.loggers import CSVLogger


def log_again(
    loggers: Iterable[Any], *, history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    """Log the lines of the run so far to CSV loggers, which start their file again; other loggers append.

    Args:
        loggers: of the run.
        history: one record per iteration.
        evaluations: one record per evaluation, with the number of iterations before it.
    """
    rows = [(row["iteration"], 1, logged_iteration(row)) for row in history]
    rows += [(row["iteration"], 0, logged_evaluation(row)) for row in evaluations]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            for step, _, metrics in sorted(rows, key=lambda row: row[:2]):
                logger.log_metrics(metrics, step=step)


def logged_iteration(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an iteration's record that are logged."""
    return {name: value for name, value in row.items() if name not in ("iteration", "max_iterations")}


def logged_evaluation(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an evaluation's record that are logged."""
    return {f"eval/{name}": value for name, value in row.items() if name not in ("iteration", "split")}
