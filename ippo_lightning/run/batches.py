"""Training batches from a position on, so that a resumed run sees what the unbroken run would have seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ippo_lightning.errors import UserError
from ippo_lightning.records import Batch
from ippo_lightning.tasks import Row

Split = Literal["validation", "test"]


class TrainingBatches:
    """The batches of a training loader, epoch after epoch.

    Args:
        position: `epoch` and `batch` of a checkpoint: how many epochs are done, and how many batches of the next one.
    """

    def __init__(self, position: Mapping[str, int] | None = None) -> None:
        self.position = {"epoch": 0, "batch": 0, **(position or {})}

    def of(self, loader: DataLoader[Row]) -> Iterator[Batch]:
        """Yield batches without end, from the position on; each one moves the position.

        Args:
            loader: its sampler's `set_epoch`, if it has one, makes the order of each epoch.

        Raises:
            UserError: the loader has no batch.
        """
        if len(loader) == 0:
            raise UserError("data: the training split has 0 batches; expected at least 1 (is batch_size too large?)")
        skip = self.position["batch"]
        while True:
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(self.position["epoch"])
            # Skipped batches are loaded too, because a loader cannot begin in the middle of an epoch.
            for index, batch in enumerate(quiet_iterator(loader)):
                if index >= skip:
                    # Before the batch is used: a checkpoint written during its iteration counts it as done.
                    self.position["batch"] = index + 1
                    yield batch
            skip = 0
            self.position = {"epoch": self.position["epoch"] + 1, "batch": 0}


def evaluation_loader(datamodule: LightningDataModule, split: Split) -> DataLoader[Row]:
    """Return the loader of a split that is evaluated.

    Raises:
        UserError: the split has no prompts.
    """
    loader: DataLoader[Row] = datamodule.val_dataloader() if split == "validation" else datamodule.test_dataloader()
    if len(loader) == 0:
        raise UserError(f"data: the {split} split has 0 batches; expected at least 1 prompt")
    return loader


def quiet_iterator(loader: DataLoader[Row]) -> Iterator[Batch]:
    """Begin to load without drawing from torch's global random stream.

    A data loader draws a seed for its workers whenever an epoch begins. A resumed run begins in the middle of an epoch;
    with that draw its stream would differ from the one of the unbroken run.
    """
    state = torch.get_rng_state()
    batches = iter(loader)
    torch.set_rng_state(state)
    return batches
