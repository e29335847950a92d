"""What a resumed run logs again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning.fabric.loggers import CSVLogger

from ippo_lightning.storage.run_folder import JsonObject


def log_again(loggers: Iterable[object], *, history: Sequence[JsonObject], evaluations: Sequence[JsonObject]) -> None:
    """Log the lines of the run so far to CSV loggers, which start their file again; other loggers append.

    Args:
        loggers: of the run.
        history: one record per iteration.
        evaluations: one record per evaluation, with the number of iterations before it.
    """
    rows = [(row["iteration"], 1, logged_iteration(row)) for row in history]
    rows += [(row["iteration"], 0, logged_evaluation(row)) for row in evaluations]
    # An evaluation after 5 iterations has the step 5, as the iteration that follows it; the 0 puts it first.
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            for step, _, metrics in sorted(rows, key=lambda row: row[:2]):
                logger.log_metrics(dict(metrics), step=step)


def logged_iteration(row: JsonObject) -> JsonObject:
    """Return the numbers of an iteration's record that are logged."""
    return {name: value for name, value in row.items() if name not in ("iteration", "max_iterations")}


def logged_evaluation(row: JsonObject) -> JsonObject:
    """Return the numbers of an evaluation's record that are logged."""
    return {f"eval/{name}": value for name, value in row.items() if name not in ("iteration", "split")}
