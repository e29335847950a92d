"""Checkpoints that callbacks write beside the run's own, and what callbacks add to all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.trainer.states import TrainerStatus

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.run.checkpoints import Checkpoint, write_checkpoint
from ippo_lightning.run.lightning_hooks import check_plain
from ippo_lightning.storage.run_folder import BEST_CHECKPOINT, CHECKPOINT_PATTERN, LAST_CHECKPOINT

if TYPE_CHECKING:
    from ippo_lightning.run.fabric_loop import FabricLoop


def with_entries_of_callbacks(state: Checkpoint, call_hook: Callable[..., None]) -> Checkpoint:
    """Return the content of a checkpoint with what `on_save_checkpoint` of the callbacks adds to it.

    Args:
        state: of the loop.
        call_hook: calls the hook of all callbacks.

    Raises:
        UserError: a callback changed an entry of the loop, or added what a checkpoint cannot contain.
    """
    own = dict(state)
    changed = cast(dict[str, Any], state)
    call_hook("on_save_checkpoint", changed)
    lost = [name for name in own if changed.get(name) is not own[name]]
    if lost:
        raise UserError(
            f"callbacks: on_save_checkpoint replaced or removed {lost[0]!r} of a checkpoint; it may add entries only"
        )
    added = {name: value for name, value in changed.items() if name not in own}
    if added:
        check_plain(added, f"callbacks: on_save_checkpoint added ({', '.join(map(str, added))})")
    return state


def write_extra(loop: FabricLoop, path: Path, state: Callable[[], Checkpoint], *, weights_only: bool) -> None:
    """Write a checkpoint for a callback; every rank must call this, and rank 0 writes.

    Args:
        loop: of the run.
        path: the file; its folder is created.
        state: makes the content.
        weights_only: leave out optimizer, callbacks and random streams: the file is for evaluation and export.

    Raises:
        UserError: the file is one of the run's own, or the run has failed on one of several ranks.
    """
    own = path.name in (LAST_CHECKPOINT, BEST_CHECKPOINT) or path.match(CHECKPOINT_PATTERN)
    if own and path.resolve().parent == loop.checkpoints.path.resolve():
        raise UserError(f"callbacks: {path} is a checkpoint of the run itself; write to another file or folder")
    # The content is gathered from all ranks, and the one that failed does not take part.
    if loop.state.status == TrainerStatus.INTERRUPTED and world_size() > 1:
        raise UserError(f"callbacks: {path} cannot be written after an error on one of several ranks")
    content = dict(state())
    if weights_only:
        content.update(optimizer={}, scaler={}, callbacks=[], random=[])
    if rank() == 0:
        write_checkpoint(cast(Checkpoint, content), path)
    loop.fabric.barrier()
