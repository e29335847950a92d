"""An iteration that loses its sampler takes no other iteration with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.engine import random_states, restore_random_states

if TYPE_CHECKING:
    from ippo_lightning.run.iteration_loop import IterationLoop


@contextmanager
def keeping_earlier_iterations(loop: IterationLoop) -> Iterator[None]:
    """Write a checkpoint of all earlier iterations if the block loses a connection, and raise the error again.

    An engine ends while it samples. No update has begun then, so the parameters are those that the last iteration left.

    Args:
        loop: about to take the iteration's batch.
    """
    # The checkpoint of several ranks needs all of them, and the others wait in a sum of this iteration.
    if world_size() > 1:
        yield
        return
    states, position = random_states(), dict(loop.batches.position)
    try:
        yield
    except ConnectionError:
        # Back to where the iteration began: a resumed run then repeats it with the same prompts and the same draws.
        restore_random_states(states, source="this iteration")
        loop.batches.position = position
        loop.checkpoint()
        raise
