"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ippo_lightning.engine import rank, world_size
from ippo_lightning.errors import UserError

FORMAT = 1


def save_checkpoint(
    path: Path,
    *,
    module: Any,
    optimizer: Any,
    callbacks: Sequence[Any],
    position: Mapping[str, int],
) -> None:
    """Write a checkpoint; an older one of the same name stays whole until the new one is.

    Args:
        path: the file; its folder is made.
        module: a `PolicyModule`; its trainable parameters are saved, frozen ones come from their source again.
        optimizer: with `state_dict`.
        callbacks: with Lightning's `state_dict`.
        position: the data loader's epoch and batch.
    """
    streams = _all_random_states()
    if rank() != 0:
        return
    state = {
        "format": FORMAT,
        "parameters": {name: p.detach().cpu() for name, p in module.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "progress": module.progress_state(),
        "position": dict(position),
        "callbacks": {_callback_key(index, item): item.state_dict() for index, item in enumerate(callbacks)},
        "random": streams,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(
    path: Path, *, module: Any, optimizer: Any | None = None, callbacks: Sequence[Any] | None = None
) -> dict[str, int]:
    """Take over a checkpoint; return the data loader's position.

    Args:
        path: written by `save_checkpoint`.
        module: built as the one that was saved.
        optimizer: null to leave it (for evaluation).
        callbacks: the same list as when saving; null to leave callbacks and random streams (for evaluation).

    Raises:
        UserError: no such file, not a checkpoint, or one of another module.
    """
    state = read_checkpoint(path)
    load_parameters(module, state["parameters"], source=path)
    module.load_progress_state(state["progress"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    if callbacks is not None:
        for index, item in enumerate(callbacks):
            saved = state["callbacks"].get(_callback_key(index, item))
            if saved:
                item.load_state_dict(saved)
        _restore_random_state(state["random"], path)
    return dict(state["position"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, read without running any code of the file."""
    if not path.is_file():
        raise UserError(f"checkpoint: {path} is no file; expected a checkpoint that `ippo fit` wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"checkpoint: {path} cannot be read ({str(error).splitlines()[0][:120]})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"checkpoint: {path} is not of format {FORMAT}; expected a checkpoint that `ippo fit` wrote")
    return state


def load_parameters(module: nn.Module, parameters: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy saved values into the trainable parameters, which must be the same set with the same shapes."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    differing = sorted(set(trainable) ^ set(parameters)) or sorted(
        name for name in trainable if trainable[name].shape != parameters[name].shape
    )
    if differing:
        raise UserError(f"checkpoint: {source} is of another model; the first parameter that differs is {differing[0]}")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(parameters[name])


def _callback_key(index: int, callback: Any) -> str:
    return f"{index}:{callback.state_key}"


def _all_random_states() -> list[dict[str, Any]]:
    mine = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    if world_size() == 1:
        return [mine]
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, mine)
    return states


def _restore_random_state(states: Sequence[Mapping[str, Any]], path: Path) -> None:
    if len(states) != world_size():
        raise UserError(
            f"checkpoint: {path} was written by {len(states)} processes, this run has {world_size()}; use as many"
        )
    mine = states[rank()]
    version, internal, gauss = mine["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(mine["torch"])
    if torch.cuda.is_available() and mine["cuda"]:
        torch.cuda.set_rng_state_all(mine["cuda"])
