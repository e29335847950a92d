"""The data module of environments: rollouts come from the module, so there is nothing to load but seeds."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import require_range

_STRIDE = 1_000_003
"""Between the first seeds of the splits."""


class ControlDataModule(LightningDataModule):
    """Episodes for evaluation, by their seeds; one epoch of training is one iteration.

    The seeds do not depend on those of training, so that all runs of a comparison are evaluated on the same episodes.

    Args:
        evaluation_episodes: of each evaluation during training, over all ranks.
        test_episodes: of the evaluation at the end, over all ranks; they are others.
        seed: of the episodes of both.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, evaluation_episodes: int = 100, test_episodes: int = 100, seed: int = 0) -> None:
        super().__init__()
        require_range("data.evaluation_episodes", evaluation_episodes, at_least=1, integer=True)
        require_range("data.test_episodes", test_episodes, at_least=1, integer=True)
        require_range("data.seed", seed, at_least=0, integer=True)
        self.evaluation_episodes, self.test_episodes, self.seed = evaluation_episodes, test_episodes, seed

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return one batch, which says nothing: what to play follows from the policy."""
        return _loader({"rollouts": 1})

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the seeds of this rank's episodes, in one batch."""
        return self._batches(self.evaluation_episodes, split=1)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the seeds of this rank's episodes, in one batch."""
        return self._batches(self.test_episodes, split=2)

    def _batches(self, count: int, *, split: int) -> DataLoader[dict[str, Any]]:
        first = self.seed * 10 * _STRIDE + split * _STRIDE
        mine = [first + number for number in range(rank(), count, world_size())]
        # A rank without an episode of its own plays the first one again: a loader without batches is an error.
        return _loader({"seeds": mine or [first]})


def _loader(batch: dict[str, Any]) -> DataLoader[dict[str, Any]]:
    # A list of one batch would do for our loop; to `lightning.Trainer` a list is several loaders.
    # A generator of its own: each pass draws a seed for workers, and that would move the random stream of training.
    return DataLoader([batch], batch_size=None, collate_fn=_as_it_is, generator=torch.Generator())  # type: ignore[arg-type]


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
