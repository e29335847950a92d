"""Training batches from a position on, so that a resumed run sees what the unbroken run would have seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.records import Batch
from ippo_lightning.records.digests import batch_digest
from ippo_lightning.run.loaders import LoaderStream, length_of, set_epoch

# Between the seeds of neighbouring epochs and ranks; primes, so that no two of a run are equal.
_EPOCH_STRIDE, _RANK_STRIDE = 7919, 104729


class TrainingBatches:
    """The batches of a training loader, epoch after epoch.

    A loader cannot begin in the middle of an epoch, so a resumed run loads the skipped batches too. The last of them
    must be the one that the checkpoint has seen; a loader that gives others is refused.

    Args:
        position: `epoch`, `batch` and `digest` of a checkpoint: how many epochs are done, how many batches of the next
            one, and what the last of them was. None for the beginning.
        seed: of the random numbers that loading draws.
    """

    def __init__(self, position: Mapping[str, int] | None = None, *, seed: int = 0) -> None:
        self.position = {"epoch": 0, "batch": 0, "digest": 0, **(position or {})}
        self.seed = seed
        self._loader: Iterable[Batch] = ()
        self._length: int | None = None
        self._batches: Iterator[Batch] | None = None
        self._stream = LoaderStream(seed)
        self._next: Batch | None = None

    def begin(self, loader: Iterable[Batch]) -> None:
        """Load from a loader, from the position on.

        Args:
            loader: see `loader_of`.
        """
        self._loader, self._length = loader, length_of(loader)
        self._batches = self._next = None

    @property
    def is_last(self) -> bool:
        """Whether the batch taken last is known to end its epoch; a loader without a length does not tell."""
        return self._length is not None and self.position["batch"] >= self._length

    def peek(self) -> Batch | None:
        """Return the next batch without taking it; None if the epoch is over.

        Raises:
            UserError: an epoch without batches, or a loader that gives other batches than before the checkpoint.
        """
        if self._next is None:
            if self._batches is None:
                self._batches = self._begun()
            self._next = self._loaded()
            if self._next is None and self.position["batch"] == 0:
                # `iter` of a generator gives the generator itself, which is empty after its first epoch.
                again = "; expected one that can start again" if self.position["epoch"] else ""
                raise UserError(f"data: epoch {self.position['epoch']} of the training loader has 0 batches{again}")
        return self._next

    def take(self) -> Batch:
        """Return the batch of `peek`, and move the position behind it; the epoch must not be over."""
        batch = self.peek()
        assert batch is not None, "the caller ends the epoch first"
        self._next = None
        # Before the batch is used: a checkpoint written during its iteration counts it as done.
        self.position = {**self.position, "batch": self.position["batch"] + 1, "digest": batch_digest(batch)}
        return batch

    def end_epoch(self) -> None:
        """Move the position to the beginning of the next epoch."""
        self.position = {"epoch": self.position["epoch"] + 1, "batch": 0, "digest": 0}
        self._batches = self._next = None

    def _begun(self) -> Iterator[Batch]:
        """Return the epoch's batches from the position on."""
        epoch, skipped, digest = (self.position[name] for name in ("epoch", "batch", "digest"))
        set_epoch(self._loader, epoch)
        self._stream = LoaderStream(self.seed + _EPOCH_STRIDE * epoch + _RANK_STRIDE * rank())
        self._batches = _guarded(lambda: self._stream.run(lambda: iter(self._loader)))
        last: Batch | None = None
        for number in range(skipped):
            last = self._loaded()
            if last is None:
                raise UserError(
                    f"data: the checkpoint is behind batch {skipped} of epoch {epoch}, and the training loader has "
                    f"{number}; resume with the data of the run"
                )
        # Checkpoints of earlier versions have no digest.
        if last is not None and digest and batch_digest(last) != digest:
            raise UserError(
                f"data: batch {skipped} of epoch {epoch} is not the one before the checkpoint, so the position in the "
                "data is unknown; resume with the data of the run, and with a loader that gives an epoch's batches "
                "again in the same order"
            )
        return self._batches

    def _loaded(self) -> Batch | None:
        batches = self._batches
        assert batches is not None
        return _guarded(lambda: self._stream.run(lambda: next(batches, None)))


def _guarded(load: Any) -> Any:
    """Return what a user's loader gives; its errors become one line."""
    try:
        return load()
    # Memory and disk have messages of their own.
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # the user's code may raise anything; its cause stays attached
        message = " ".join(str(error).split())[:200]
        raise UserError(f"data: the training loader raised {type(error).__name__}: {message}") from error


def positions_of_ranks(position: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the positions of all ranks, on all ranks alike; each rank reads a loader of its own.

    Args:
        position: of this rank.
    """
    if world_size() == 1:
        return [dict(position)]
    positions: list[Any] = [None] * world_size()
    dist.all_gather_object(positions, dict(position))
    return positions
