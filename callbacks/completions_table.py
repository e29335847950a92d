"""Show what the policy writes: to the terminal, to a parquet file, to the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ippo_lightning.callbacks.episode_log import episode_rows
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdateStats
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.untrusted_text import cut, visible_text

COLUMNS = ("prompt", "response", "label", "reward", "advantage", "score", "kept")
_LONGEST_CELL = 120


class CompletionsTable(Callback):
    """Every n-th iteration, a few completions with reward, advantage, score, whether they were kept, and label.

    The parquet file `completions/iteration_<n>.parquet` in the run's folder holds all of the iteration's episodes (of
    rank 0). Loggers that know tables or texts get the same few rows as the terminal: TensorBoard, Weights & Biases,
    MLflow.

    Args:
        every_n_iterations: 1 for all.
        num_rows: completions in the terminal and in loggers, the highest and the lowest scores among them.
        terminal: print them, where the output is one.
        parquet: write the file.
        loggers: hand them to the loggers.

    Raises:
        UserError: a number below 1.
    """

    def __init__(
        self,
        every_n_iterations: int = 10,
        num_rows: int = 6,
        terminal: bool = True,
        parquet: bool = True,
        loggers: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_iterations", every_n_iterations), ("num_rows", num_rows)):
            if value < 1:
                raise UserError(f"CompletionsTable.{name}: {value} is out of range; expected an integer >= 1")
        self.every_n_iterations = every_n_iterations
        self.num_rows = num_rows
        self.terminal = terminal
        self.parquet = parquet
        self.loggers = loggers

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        """Show this iteration's completions, if it is its turn."""
        if stats.iteration % self.every_n_iterations or rank() != 0:
            return
        rows = completion_rows(stats, grader=getattr(pl_module, "grader", None))
        if self.parquet:
            write_parquet(
                rows, Path(trainer.default_root_dir) / "completions" / f"iteration_{stats.iteration:07d}.parquet"
            )
        shown = chosen_rows(rows, self.num_rows)
        console = getattr(trainer, "console", None) or Console(stderr=True)
        if self.terminal and console.is_terminal:
            console.print(terminal_table(shown, iteration=stats.iteration))
        if self.loggers:
            log_table(getattr(trainer, "loggers", []), shown, iteration=stats.iteration)


def completion_rows(stats: UpdateStats, *, grader: Any = None) -> list[dict[str, Any]]:
    """Return a record an episode: `episode_rows` with whether it was kept."""
    return [{**row, "kept": row["weight"] > 0} for row in episode_rows(stats, grader=grader)]


def chosen_rows(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return `count` rows from the highest to the lowest score (reward where there are no scores), evenly spread."""
    ranked = sorted(rows, key=lambda row: row["reward"] if row["score"] is None else row["score"], reverse=True)
    if len(ranked) <= count:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / max(count - 1, 1))] for place in range(count)]


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as parquet, whole or not at all; texts stay as the model wrote them."""
    import pyarrow
    from pyarrow import parquet

    whole = [{**row, "prompt": _storable(row["prompt"]), "response": _storable(row["response"])} for row in rows]
    write_whole(path, lambda file: parquet.write_table(pyarrow.Table.from_pylist(whole), file))


def terminal_table(rows: Iterable[Mapping[str, Any]], *, iteration: int) -> Table:
    """Return a table that fits 80 columns; control characters in texts are made visible."""
    table = Table(
        title=f"Completions, iteration {iteration}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    table.add_column("prompt", max_width=16, overflow="fold")
    table.add_column("response", max_width=24, overflow="fold")
    table.add_column("label", max_width=12)
    for name in ("reward", "score"):
        table.add_column(name, justify="right")
    table.add_column("kept")
    for row in rows:
        texts = [Text(_shown(row[name])) for name in ("prompt", "response")]
        texts.append(Text(_shown(row["label"]).replace("_", " ")))
        numbers = [_number(row[name]) for name in ("reward", "score")]
        table.add_row(*texts, *numbers, "yes" if row["kept"] else "no")
    return table


def log_table(loggers: Iterable[Any], rows: Sequence[Mapping[str, Any]], *, iteration: int) -> None:
    """Hand rows to every logger that knows tables or texts.

    Args:
        loggers: TensorBoard gets a text, Weights & Biases and MLflow a table, others nothing.
        rows: see `completion_rows`.
        iteration: of the rows.
    """
    cells = [[_shown(row[name]) if isinstance(row[name], str) else row[name] for name in COLUMNS] for row in rows]
    for logger in loggers:
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_text("completions", markdown_table(cells), iteration)
        elif kind == "WandbLogger":
            logger.log_table("completions", columns=list(COLUMNS), data=cells, step=iteration)
        elif kind == "MLFlowLogger":
            columns = {name: [row[place] for row in cells] for place, name in enumerate(COLUMNS)}
            logger.experiment.log_table(logger.run_id, columns, f"completions/iteration_{iteration:07d}.json")


def markdown_table(cells: Sequence[Sequence[Any]]) -> str:
    """Return rows as a table in markdown, texts as code."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in cells]
    return "\n".join(lines)


def _markdown_cell(cell: Any) -> str:
    if not isinstance(cell, str):
        return _number(cell)
    escaped = cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return escaped.replace("\n", " ")


def _shown(text: str | None) -> str:
    return visible_text(cut(text or "", _LONGEST_CELL))


def _storable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _number(value: float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.3g}"
