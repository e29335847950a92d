"""Random streams: one for each rank, kept in checkpoints, of every library that training draws from."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import UserError

# Between the seeds of neighbouring ranks. With 1, rank 1 of a run with seed 0 would repeat rank 0 of one with seed 1.
_STRIDE = 1000


class HostStates(TypedDict):
    """The state of the random streams that belong to Python and NumPy."""

    python: tuple[Any, ...]
    """Of `random`."""
    numpy: tuple[str, Tensor, int, int, float]
    """Of `numpy.random`; the tensor contains its 624 keys, int64."""


class RandomStates(HostStates):
    """The state of each random stream of one rank, as plain numbers and tensors."""

    torch: Tensor
    """Of the CPU, uint8."""
    cuda: list[Tensor]
    """Of each GPU, uint8; empty if this process has used none."""


def global_seed() -> int:
    """Return the seed that Lightning's `seed_everything` has set, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_training(seed: int) -> None:
    """Begin this rank's stream of rollouts and minibatches; no two ranks of a run share one.

    Args:
        seed: of the run.
    """
    torch.manual_seed(seed + _STRIDE * rank())


def own_streams() -> RandomStates:
    """Return the state of every stream of this rank, as plain numbers and tensors."""
    return _with_torch(_host_streams())


def _host_streams() -> HostStates:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    cached = int(has_gauss), float(gauss)
    return {
        "python": random.getstate(),
        # A tensor, because `torch.load(weights_only=True)` refuses NumPy arrays.
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), *cached),
    }


def _with_torch(host: HostStates) -> RandomStates:
    return {
        **host,
        "torch": torch.get_rng_state(),
        # A process that has not used its GPUs has drawn from none of their streams.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


class StepStreams:
    """The streams before each optimizer step of an iteration.

    To read those of Python and NumPy takes a few hundredths of a small step, and hardly any loss draws from them. So
    they are read until a step has left them as they were; the later steps of the iteration run the same code. A loss
    that begins to draw from them in a later step is repeated with other numbers.
    """

    def __init__(self) -> None:
        self._host: HostStates | None = None
        self._is_quiet = False

    def before_step(self) -> RandomStates:
        """Return the state of every stream of this rank."""
        before = self._host
        if before is None or not self._is_quiet:
            self._host = _host_streams()
            self._is_quiet = before is not None and _is_same(before, self._host)
        assert self._host is not None, "read above"
        return _with_torch(self._host)


def _is_same(one: HostStates, other: HostStates) -> bool:
    (kind, keys, *rest), (other_kind, other_keys, *other_rest) = one["numpy"], other["numpy"]
    is_same = (kind, rest) == (other_kind, other_rest) and torch.equal(keys, other_keys)
    return is_same and one["python"] == other["python"]


def continue_own_streams(mine: RandomStates) -> None:
    """Continue the streams that `own_streams` returned.

    Args:
        mine: of this rank.
    """
    version, internal, gauss = mine["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = mine["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(mine["torch"])
    # A file from a machine without a GPU has no state to continue, one with more GPUs has too many.
    if torch.cuda.is_available() and mine["cuda"]:
        torch.cuda.set_rng_state_all(mine["cuda"][: torch.cuda.device_count()])


def random_states() -> list[RandomStates]:
    """Return the state of every stream of every rank, as plain numbers and tensors, on all ranks alike."""
    mine = own_streams()
    if world_size() == 1:
        return [mine]
    # Rank 0 alone writes the checkpoint, and each rank has a stream of its own.
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, mine)
    return states


def restore_random_states(states: Sequence[RandomStates], *, source: object) -> None:
    """Continue the streams that `random_states` returned.

    Args:
        states: of all ranks.
        source: names the checkpoint in the error.

    Raises:
        UserError: another number of ranks.
    """
    if len(states) != world_size():
        raise UserError(
            f"checkpoint: {source} was written by {len(states)} processes, this run has {world_size()}; use as many"
        )
    continue_own_streams(states[rank()])
