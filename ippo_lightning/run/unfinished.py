"""An iteration that fails takes no other iteration with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.engine.random_streams import continue_own_streams, own_streams
from ippo_lightning.influence import ChecksumError
from ippo_lightning.modules import FailedStepError
from ippo_lightning.records.finite_weights import broken_weights
from ippo_lightning.run.lightning_hooks import errors_named

if TYPE_CHECKING:
    from ippo_lightning.run.iteration_loop import IterationLoop


_COPIED = 2**20
"""Entries of a tensor up to which it is copied."""


@contextmanager
def keeping_earlier_iterations(loop: IterationLoop) -> Iterator[None]:
    """Write a checkpoint if the block loses a connection, meets NaN or a wrong score, and raise the error again.

    An engine ends while it samples. No update has begun then, so the parameters are those that the last iteration left.
    A step that is not finite is not taken: the parameters are those of the last good step. Everything else goes back
    to the beginning of the iteration, so a resumed run repeats it with the same rows and the same draws.

    Args:
        loop: about to take the iteration's batch.
    """
    streams, position, callbacks = own_streams(), dict(loop.batches.position), _states(loop)
    try:
        yield
    except (ConnectionError, FloatingPointError, ChecksumError) as error:
        # The checkpoint of several ranks needs all of them. They all fail in a step, and else they wait in a sum.
        if world_size() == 1 or isinstance(error, FailedStepError):
            continue_own_streams(streams)
            loop.batches.position = position
            for callback, state in callbacks:
                callback.load_state_dict(state)
            _write(loop, keep_older=isinstance(error, FloatingPointError))
        raise


@contextmanager
def keeping_the_iteration(loop: IterationLoop) -> Iterator[None]:
    """Write a checkpoint of the iteration that is done if the evaluation in the block fails, and raise the error again.

    A resumed run begins with this evaluation. On several ranks nothing is written: one may have failed alone.

    Args:
        loop: about to evaluate.
    """
    streams, callbacks = own_streams(), _states(loop)
    try:
        yield
    except Exception:
        if world_size() == 1:
            continue_own_streams(streams)
            for callback, state in callbacks:
                callback.load_state_dict(state)
            loop.owes_evaluation = True
            _write(loop, keep_older=False)
        raise


def _write(loop: IterationLoop, *, keep_older: bool) -> None:
    # Of weights that are NaN there is no checkpoint: an older one, whose weights are finite, stays the newest.
    if broken_weights(loop.module.trained_parameters()):
        return
    if keep_older:  # the run may have gone wrong long before its numbers did
        loop.checkpoints.keep_last += 1
    loop.checkpoint()


def _states(loop: IterationLoop) -> list[tuple[Any, dict[str, Any]]]:
    """Return the callbacks that have a state, with that state."""
    # Of a sharded model, a state may contain a gradient that all ranks would have to gather in every iteration.
    if is_sharded(loop.module):
        return []
    # Also an empty state: what the iteration adds to it has to go again.
    found = []
    for callback in loop.callbacks:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            with errors_named(f"{type(callback).__name__}.state_dict"):
                found.append((callback, _copied(callback.state_dict())))
    return found


def _copied(value: Any) -> Any:
    """Copy a state, which a callback may go on to change in place."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(entry) for entry in value)
    # A large one is a gradient or a copy of weights: callbacks replace it, and a copy would take as much memory again.
    return value.clone() if isinstance(value, Tensor) and value.numel() <= _COPIED else value
