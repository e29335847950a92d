"""Show what the policy writes: in the terminal, in a parquet file, in the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ippo_lightning.callbacks.episode_log import HasRunFolder, episode_rows, grader_of, is_due
from ippo_lightning.callbacks.requirements import require_rollouts, require_texts
from ippo_lightning.errors import require_range
from ippo_lightning.records import UpdateStats
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.iteration_files import completions_path
from ippo_lightning.storage.run_folder import JsonObject
from ippo_lightning.storage.untrusted_text import cut, visible_text
from ippo_lightning.tasks import Grader

COLUMNS = ("prompt", "response", "label", "reward", "advantage", "score", "kept")
_LONGEST_CELL = 120
Cell = str | float | bool | None
_WITHOUT_LABELS = {True: "right", False: "wrong", None: None}
"""The label if the grader gives none, by whether the answer is right."""


class CompletionsTable(Callback):
    """Show a few completions every n iterations, with label, reward, advantage, score and whether they were kept.

    The parquet file `completions/iteration_<n>.parquet` in the run's folder contains all episodes of the iteration on
    rank 0. TensorBoard, Weights & Biases and MLflow get the same few rows as the terminal.

    Args:
        every_n_iterations: 1 for every iteration.
        num_rows: completions in the terminal and in the loggers; the highest and the lowest score are among them.
        terminal: print the completions, if the output is a terminal.
        parquet: write the file.
        loggers: send the completions to the loggers.

    Raises:
        UserError: a number is below 1.
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
        require_range("CompletionsTable.every_n_iterations", every_n_iterations, at_least=1, integer=True)
        require_range("CompletionsTable.num_rows", num_rows, at_least=1, integer=True)
        self.every_n_iterations = every_n_iterations
        self.num_rows = num_rows
        self.terminal = terminal
        self.parquet = parquet
        self.loggers = loggers

    def setup(self, trainer: HasRunFolder, pl_module: object, stage: str) -> None:
        """Refuse a module without prompts and responses.

        Raises:
            UserError: the module acts in environments, or makes no rollouts.
        """
        if stage == "fit":
            require_rollouts(self, pl_module)
        require_texts(self, pl_module)

    def on_update_end(self, trainer: HasRunFolder, pl_module: object, stats: UpdateStats) -> None:
        """Show the completions of every n-th iteration."""
        if is_due(stats, every_n_iterations=self.every_n_iterations):
            self.show(trainer, completion_rows(stats, grader=grader_of(pl_module)), iteration=stats.iteration)

    def show(self, trainer: HasRunFolder, rows: Sequence[JsonObject], *, iteration: int) -> None:
        """Write rows to the file, the terminal and the loggers, as far as they are switched on.

        Args:
            trainer: has `default_root_dir`; may have `console` and `loggers`.
            rows: see `completion_rows`.
            iteration: of the rows.
        """
        if self.parquet:
            write_parquet(rows, completions_path(Path(trainer.default_root_dir), iteration=iteration))
        shown = chosen_rows(rows, self.num_rows)
        # The loop's own console: a second one would write into the middle of the progress bar.
        console = getattr(trainer, "console", None) or Console(stderr=True)
        if self.terminal and console.is_terminal:
            console.print(terminal_table(shown, iteration=iteration))
        if self.loggers:
            log_table(getattr(trainer, "loggers", []), shown, iteration=iteration)


def completion_rows(stats: UpdateStats, *, grader: Grader | None = None) -> list[JsonObject]:
    """Return `episode_rows` with `kept`; without labels of the grader, `label` is `right` or `wrong`.

    Args:
        stats: of one iteration.
        grader: see `episode_rows`.
    """
    return [
        {**row, "label": row["label"] or _WITHOUT_LABELS[row["correct"]], "kept": row["weight"] > 0}
        for row in episode_rows(stats, grader=grader)
    ]


def chosen_rows(rows: Sequence[JsonObject], count: int) -> list[JsonObject]:
    """Return `count` rows, evenly spread from the highest to the lowest score, or reward if there is no score.

    Args:
        rows: see `completion_rows`.
        count: maximum number of rows.
    """
    # All rows of an iteration have a score or none has: scoring covers the whole plan.
    ranked = sorted(rows, key=lambda row: row["reward"] if row["score"] is None else row["score"], reverse=True)
    if len(ranked) <= count:
        return ranked
    # Both ends are included. max: a single row is the highest one.
    return [ranked[round(place * (len(ranked) - 1) / max(count - 1, 1))] for place in range(count)]


def write_parquet(rows: Sequence[JsonObject], path: Path) -> None:
    """Write rows as parquet, completely or not at all; texts stay as the model wrote them.

    Args:
        rows: see `completion_rows`.
        path: the file to write.
    """
    # Importing pyarrow takes about as long as the rest of this package; most runs never write a table.
    import pyarrow
    from pyarrow import parquet

    # Without a schema, a column that is None in all rows gets another type than in the next file.
    schema = pyarrow.schema(
        [
            ("iteration", pyarrow.int64()),
            *((name, pyarrow.string()) for name in ("prompt", "response", "label")),
            ("correct", pyarrow.bool_()),
            *((name, pyarrow.float64()) for name in ("reward", "advantage", "score", "weight")),
            ("reasons", pyarrow.list_(pyarrow.string())),
            ("factors", pyarrow.list_(pyarrow.float64())),
            ("kept", pyarrow.bool_()),
        ]
    )
    table = pyarrow.Table.from_pylist([_storable(row) for row in rows], schema=schema)
    write_whole(path, lambda file: parquet.write_table(table, file))


def terminal_table(rows: Iterable[JsonObject], *, iteration: int) -> Table:
    """Return a table that fits 80 columns; control characters in texts become visible signs.

    Args:
        rows: see `completion_rows`.
        iteration: for the title.
    """
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
        # Text, not str: rich would read brackets in a completion as markup.
        texts = [Text(_shown(row[name])) for name in ("prompt", "response")]
        texts.append(Text(_shown(row["label"]).replace("_", " ")))
        numbers = [_number(row[name]) for name in ("reward", "score")]
        table.add_row(*texts, *numbers, "yes" if row["kept"] else "no")
    return table


def log_table(loggers: Iterable[Any], rows: Sequence[JsonObject], *, iteration: int) -> None:
    """Send rows to every logger that accepts tables or texts.

    Args:
        loggers: TensorBoard gets a text; Weights & Biases and MLflow get a table; others get nothing.
        rows: see `completion_rows`.
        iteration: of the rows.
    """
    cells = [[_shown(row[name]) if isinstance(row[name], str) else row[name] for name in COLUMNS] for row in rows]
    for logger in loggers:
        # By name: an import of the classes would need wandb and mlflow installed.
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_text("completions", markdown_table(cells), iteration)
        elif kind == "WandbLogger":
            logger.log_table("completions", columns=list(COLUMNS), data=cells, step=iteration)
        elif kind == "MLFlowLogger":
            columns = {name: [row[place] for row in cells] for place, name in enumerate(COLUMNS)}
            # With leading zeros, so that the order of the names is that of the iterations.
            logger.experiment.log_table(logger.run_id, columns, f"completions/iteration_{iteration:07d}.json")


def markdown_table(cells: Sequence[Sequence[Cell]]) -> str:
    """Return rows as a table in markdown; texts are escaped.

    Args:
        cells: one value per entry of `COLUMNS` in each row.
    """
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in cells]
    return "\n".join(lines)


def _markdown_cell(cell: Cell) -> str:
    if not isinstance(cell, str):
        return _number(cell)
    # "&" first: it would escape the other escapes again. TensorBoard shows markdown as HTML.
    escaped = cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return escaped.replace("\n", " ")


def _shown(text: str | None) -> str:
    # Cut first: a code that stands for a hidden character must not be cut in two.
    return visible_text(cut(text or "", _LONGEST_CELL))


def _storable(value: object) -> object:
    """Return `value` with valid UTF-8 in every text, at any depth: a model may emit half a character."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _number(value: float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.3g}"
