"""One data module for all tasks: batches of text, and a loader for each use."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ippo_lightning.data.loaders import collate_rows, evaluation_loader, training_loader
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import Batch
from ippo_lightning.tasks import (
    TASKS,
    NeedsPreparation,
    Row,
    Split,
    Task,
    TaskLike,
    callable_name,
    messages_fault,
    named_task,
)
from ippo_lightning.tasks.first_rank import is_first_rank
from ippo_lightning.tasks.leaks import find_leaks
from ippo_lightning.tasks.raised import raised

Stage = Literal["sft", "rl"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows of a task, see `ippo_lightning.tasks.Split`."""

    prompts: Sequence[Row]
    """Training, for PPO."""
    demonstrations: Sequence[Row]
    """Training, for SFT; with responses."""
    validation: Sequence[Row]
    """Prompts."""
    test: Sequence[Row]
    """Prompts."""
    influence: Sequence[Row]
    """The demonstrations behind the filter's validation gradient; with responses."""


class TextDataModule(LightningDataModule):
    """Batches of a task's text: `prompts`, `examples`, and in batches of demonstrations `responses`.

    Args:
        task: an object with the methods of `ippo_lightning.tasks.Task`, or the short name of one of this library's own
            (`arithmetic`, `gsm8k`). In YAML a name, or `class_path` with `init_args`.
        stage: `sft` trains on demonstrations, `rl` on prompts.
        batch_size: training prompts or demonstrations per batch, on each rank.
        evaluation_batch_size: prompts per batch for evaluation, demonstrations per batch for the filter.
        num_workers: processes that load.
        seed: of the training order; problems are drawn by the task, with a seed of its own.
        overlong_rows: what happens to a row that does not fit the model's context: `refuse` ends the run before its
            first iteration, `drop` leaves the row out, with a warning.

    Raises:
        UserError: an argument is out of its range or unknown; in `setup`, a row of the task is not as it must be.
    """

    named_parts: ClassVar[Mapping[str, Mapping[str, type]]] = {"task": TASKS}
    """Classes behind the names that an argument can have; a configuration writes them out with all of their values."""

    def __init__(
        self,
        task: TaskLike | str,
        *,
        stage: Stage = "rl",
        batch_size: int = 64,
        evaluation_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        overlong_rows: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        super().__init__()
        if stage not in ("sft", "rl"):
            raise UserError(f"data.stage: {stage!r} is unknown; expected 'sft' or 'rl'")
        if overlong_rows not in ("refuse", "drop"):
            raise UserError(f"data.overlong_rows: {overlong_rows!r} is unknown; expected 'refuse' or 'drop'")
        require_range("data.batch_size", batch_size, at_least=1, integer=True)
        require_range("data.evaluation_batch_size", evaluation_batch_size, at_least=1, integer=True)
        require_range("data.num_workers", num_workers, at_least=0, integer=True)
        self.task: Task = as_task(task)
        self.stage = stage
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.overlong_rows = overlong_rows
        self._splits: Splits | None = None

    @property
    def splits(self) -> Splits:
        """All rows, after `setup`.

        Raises:
            UserError: `setup` was not called.
        """
        if self._splits is None:
            raise UserError(f"data: {type(self).__name__} contains no rows yet; call setup() first")
        return self._splits

    def leave_out(self, split: str, places: Sequence[int]) -> None:
        """Remove rows from a split, before the loaders are made.

        Args:
            split: its name in `Splits`.
            places: of the rows, counted from 0.
        """
        gone, rows = set(places), getattr(self.splits, split)
        kept = [rows[place] for place in range(len(rows)) if place not in gone]
        self._splits = replace(self.splits, **{split: kept})

    def prepare_data(self) -> None:
        """Download what the task needs; Lightning and FabricLoop call this in one process per machine."""
        # Optional, so that a task without a download needs no empty method.
        if isinstance(self.task, NeedsPreparation):
            self.task.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Ask the task for its rows; the second call changes nothing.

        Args:
            stage: Lightning's; all splits are made, whatever its value is.

        Raises:
            UserError: the task raised, or a row is not as it must be.
        """
        if self._splits is None:
            # all splits at once, so that a mistake in one shows before training and not at its first evaluation
            rows = {split.name: self._checked_rows(cast(Split, split.name)) for split in fields(Splits)}
            self._splits = Splits(**rows)
            _log_leaks(rows)

    def train_dataloader(self) -> DataLoader[Row]:
        """Return demonstrations for SFT, prompts for PPO, in another order each epoch."""
        rows = self.splits.demonstrations if self.stage == "sft" else self.splits.prompts
        return training_loader(rows, batch_size=self.batch_size, seed=self.seed, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Row]:
        """Return the validation prompts."""
        return self._evaluation_loader(self.splits.validation)

    def test_dataloader(self) -> DataLoader[Row]:
        """Return the test prompts."""
        return self._evaluation_loader(self.splits.test)

    def influence_dataloader(self) -> list[Batch]:
        """Return batches of the demonstrations behind the validation gradient, all of them, on every rank."""
        # Not divided over ranks here: the target decides which rank does what.
        rows, size = self.splits.influence, self.evaluation_batch_size
        return [collate_rows([rows[place] for place in part]) for part in _parts(len(rows), size)]

    def _evaluation_loader(self, rows: Sequence[Row]) -> DataLoader[Row]:
        return evaluation_loader(rows, batch_size=self.evaluation_batch_size, num_workers=self.num_workers)

    def _checked_rows(self, split: Split) -> Sequence[Row]:
        source = callable_name(self.task)
        try:
            rows = self.task.rows(split)
            check_rows(rows, split=split, source=source)
        except (UserError, KeyboardInterrupt):
            raise  # already one line for the user, or the user's Ctrl-C
        except BaseException as error:  # SystemExit too: a user's code may raise anything; its cause stays attached
            raise UserError(f"data.task: {source}.rows({split!r}) {raised(error)}") from error
        return rows


def as_task(task: TaskLike | str) -> Task:
    """Return a task from its short name, or the object itself.

    Args:
        task: see `TextDataModule`.

    Raises:
        UserError: an unknown name, or an object without `rows` or `grade`.
    """
    if isinstance(task, str):
        return named_task(task)
    # A class has the methods too; it is a task only after it is called.
    if isinstance(task, type) or not isinstance(task, TaskLike):
        name = callable_name(task)
        raise UserError(f"data.task: {name} is no task; expected an object with rows(split) and grade(...), or a name")
    return task


def check_rows(rows: Sequence[Row], *, split: Split, source: str) -> None:
    """Check the first row of a split, so that a task's mistake shows before a model is loaded.

    Args:
        rows: of the split; only the first is read, because reading may cost time.
        split: its name.
        source: the task, for the message.

    Raises:
        UserError: rows without a length, or a first row that lacks something or has the wrong type.
    """
    place = f"data.task: {source}.rows({split!r})"
    if not isinstance(rows, Sequence) and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise UserError(f"{place} returned {type(rows).__name__}; expected a sequence of rows")
    if not len(rows):
        return
    row = rows[0]
    has_messages = isinstance(row, Mapping) and row.get("messages") is not None
    wanted: dict[str, type] = {"example": Mapping} if has_messages else {"prompt": str, "example": Mapping}
    if split in ("demonstrations", "influence"):
        wanted["response"] = str
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: row 0 is {type(row).__name__}; expected a mapping with {', '.join(wanted)}")
    for key, kind in wanted.items():
        if not isinstance(row.get(key), kind):
            found = type(row[key]).__name__ if key in row else "missing"
            expected = "text" if kind is str else "a mapping"
            raise UserError(f"{place}: {key} of row 0 is {found}; expected {expected}")
    fault = messages_fault(row["messages"]) if has_messages else None
    if fault is not None:
        raise UserError(f"{place}: messages of row 0 {fault}")


def _log_leaks(rows: Mapping[str, Sequence[Row]]) -> None:
    """Log prompts that are in two splits; no error, because a small test of one's own may do so on purpose."""
    if is_first_rank():
        for leak in find_leaks(rows):
            _LOG.warning(
                "data.task: %d prompts are in %s and in %s, such as %r",
                leak.num_prompts,
                leak.one,
                leak.other,
                leak.example[:60],
            )


def _parts(length: int, size: int) -> list[range]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]
