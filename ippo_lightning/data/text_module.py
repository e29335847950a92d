"""What the data modules share: batches of text from rows in memory, a loader for each use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ippo_lightning.data.loaders import Row, collate_rows, evaluation_loader, training_loader
from ippo_lightning.errors import UserError

Stage = Literal["sft", "rl"]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows of a data module."""

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


class TextDataModule(LightningDataModule, ABC):
    """Batches of text: `prompts`, `examples`, and `responses` where they are demonstrations.

    A subclass says in `make_splits` which rows there are; the responses are without EOS.

    Args:
        stage: `sft` trains on demonstrations, `rl` on prompts.
        batch_size: training prompts or demonstrations a batch, on each rank.
        evaluation_batch_size: prompts a batch for evaluation, demonstrations a batch for the filter.
        num_workers: processes that load.
        seed: of the training order.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self, *, stage: Stage, batch_size: int, evaluation_batch_size: int, num_workers: int, seed: int
    ) -> None:
        super().__init__()
        if stage not in ("sft", "rl"):
            raise UserError(f"data.stage: {stage!r} is unknown; expected 'sft' or 'rl'")
        check_count("batch_size", batch_size, at_least=1)
        check_count("evaluation_batch_size", evaluation_batch_size, at_least=1)
        check_count("num_workers", num_workers)
        self.stage = stage
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._splits: Splits | None = None

    @abstractmethod
    def make_splits(self) -> Splits:
        """Return all rows, the same on each rank."""

    @property
    def splits(self) -> Splits:
        """All rows, after `setup`."""
        if self._splits is None:
            raise UserError(f"data: {type(self).__name__} holds nothing yet; call setup() before asking for a loader")
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        """Make the rows; the second call changes nothing.

        Args:
            stage: Lightning's; all splits are made whatever it says.
        """
        if self._splits is None:
            self._splits = self.make_splits()

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

    def influence_dataloader(self) -> list[dict[str, list[Any]]]:
        """Return batches of the demonstrations behind the validation gradient, all of them, on every rank."""
        rows, size = self.splits.influence, self.evaluation_batch_size
        return [collate_rows(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _evaluation_loader(self, rows: Sequence[Row]) -> DataLoader[Row]:
        return evaluation_loader(rows, batch_size=self.evaluation_batch_size, num_workers=self.num_workers)


def check_count(name: str, value: int | None, *, at_least: int = 0) -> None:
    """Raise a UserError if a number of things is too small; None passes."""
    if value is not None and value < at_least:
        raise UserError(f"data.{name}: {value} is out of range; expected an integer >= {at_least}")


def check_fraction(name: str, value: float) -> None:
    """Raise a UserError if a fraction is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"data.{name}: {value} is out of range; expected a fraction in [0, 1]")


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise a UserError at the first number of things below zero."""
    for name, value in counts.items():
        check_count(name, value)
