"""What a data module may give as a loader: a `DataLoader`, a list of batches, or any iterable that can start again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from ippo_lightning.errors import UserError
from ippo_lightning.records import Batch

Split = Literal["training", "validation", "test"]
_METHODS = {"training": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}
_EXPECTED = "expected a DataLoader, a list of batches, or another iterable of batches"
Result = TypeVar("Result")


def loader_of(datamodule: LightningDataModule, split: Split) -> Iterable[Batch]:
    """Return the loader of a split.

    Args:
        datamodule: after its `setup`.
        split: its name.

    Raises:
        UserError: there is none, it cannot be iterated, it is several loaders, or its `__len__` is 0.
    """
    try:
        loader = getattr(datamodule, _METHODS[split])()
    except MisconfigurationException as error:  # Lightning's own method, which the data module has not overridden
        name = f"{type(datamodule).__name__}.{_METHODS[split]}"
        raise UserError(f"data: {name} is not defined; {_EXPECTED} for the {split} split") from error
    place = f"data: {_METHODS[split]} returned"
    if isinstance(loader, (str, bytes)) or not hasattr(loader, "__iter__"):
        raise UserError(f"{place} {type(loader).__name__}; {_EXPECTED}")
    members = loader.values() if isinstance(loader, Mapping) else loader if isinstance(loader, (list, tuple)) else ()
    if isinstance(loader, Mapping) or any(isinstance(member, DataLoader) for member in members):
        raise UserError(f"{place} several loaders; {_EXPECTED}, and one for each split")
    if length_of(loader) == 0:
        raise UserError(f"data: the {split} split has 0 batches; expected at least 1{_HINTS.get(split, '')}")
    return cast(Iterable[Batch], loader)


_HINTS = {"training": " (is batch_size too large?)", "validation": " prompt", "test": " prompt"}


def length_of(loader: object) -> int | None:
    """Return the number of batches of an epoch; None if the loader does not know it."""
    # A loader of an iterable data set has the method, and raises TypeError from it.
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def set_epoch(loader: object, epoch: int) -> None:
    """Give the number of the epoch to whatever orders by it: loader, sampler, batch sampler, data set.

    Args:
        loader: of any kind.
        epoch: counted from 0.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(loader, "dataset", None)]
    parts.append(getattr(batch_sampler, "sampler", None))
    for part in {id(part): part for part in parts}.values():
        if callable(method := getattr(part, "set_epoch", None)):
            method(epoch)


class LoaderStream:
    """The random numbers that loading draws, apart from those of training.

    A loader draws the seed of its workers or the order of its rows, and a data set may draw what it likes. From the
    stream of training, a resumed run, which loads the skipped batches again, would draw other numbers than the unbroken
    run, for its data and for its rollouts.

    Args:
        seed: a run and an epoch that have the same one load the same.
    """

    def __init__(self, seed: int) -> None:
        with self._training_untouched():
            # Not `torch.manual_seed`, which also seeds the GPUs.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            self._states = _states()

    def run(self, load: Callable[[], Result]) -> Result:
        """Return what `load` returns; it draws from this stream."""
        with self._training_untouched():
            _continue(self._states)
            try:
                return load()
            finally:
                self._states = _states()

    @contextmanager
    def _training_untouched(self) -> Iterator[None]:
        training = _states()
        try:
            yield
        finally:
            _continue(training)


def _states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _continue(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
