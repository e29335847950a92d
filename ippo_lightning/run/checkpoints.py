"""Checkpoints: all that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

import ippo_lightning
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import full_on_rank_zero, sharded_like
from ippo_lightning.engine import random_states, restore_random_states
from ippo_lightning.engine.random_streams import RandomStates
from ippo_lightning.errors import UserError
from ippo_lightning.modules import BaseModule, TextModule
from ippo_lightning.storage.atomic import PARTIAL, link_whole, write_whole
from ippo_lightning.storage.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINT_PATTERN,
    LAST_CHECKPOINT,
    checkpoint_name,
)

FORMAT = 2
# Entries of a frozen tensor that go into the fingerprint: enough to tell models apart, while hashing all weights of a
# large model would take long at every start.
_SAMPLED = 64


class Best(TypedDict, total=False):
    """The best evaluation so far; empty before the first."""

    metric: str
    value: float
    iteration: int
    """Iterations done before it."""
    is_written: bool
    """Whether its checkpoint is written."""


class _Later(TypedDict, total=False):  # what checkpoints of earlier versions do not have
    loop: dict[str, Any]
    """`positions` of all ranks in the data, `metrics` that callbacks monitor, state of the `datamodule`."""


class Checkpoint(_Later):
    """The content of a checkpoint: tensors and plain values, which `torch.load(weights_only=True)` accepts."""

    format: int
    version: str
    module: str
    reference: str
    fingerprint: str
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]
    position: dict[str, int]
    callbacks: dict[str, dict[str, Any]]
    random: list[RandomStates]
    best: Best
    config: str


def checkpoint_state(
    *,
    module: TextModule,
    optimizer: Optimizer,
    callbacks: Sequence[Callback],
    position: Mapping[str, int],
    fingerprint: str,
    best: Best,
    config: str,
) -> Checkpoint:
    """Return the content of a checkpoint; every rank must call this.

    Args:
        module: its trained parameters are saved; frozen ones are loaded from their source again.
        optimizer: its state is saved in full, also if it is sharded.
        callbacks: their `state_dict` is saved.
        position: epoch and batch of the training data, on this rank.
        fingerprint: of the frozen parameters, see `frozen_fingerprint`.
        best: the best evaluation so far.
        config: the run's configuration as YAML.
    """
    return {
        "format": FORMAT,
        "version": ippo_lightning.__version__,
        "module": type(module).__name__,
        "reference": module.policy.reference_kind,
        "fingerprint": fingerprint,
        "parameters": full_on_rank_zero({name: p.detach() for name, p in module.trained_parameters().items()}),
        "optimizer": full_on_rank_zero(optimizer.state_dict()),
        "scaler": module.backend.scaler.state_dict() if module.backend.scaler is not None else {},
        "progress": module.progress_state(),
        "position": dict(position),
        "callbacks": {_callback_key(index, item): _state_of(item) for index, item in enumerate(callbacks)},
        "random": random_states(),
        "best": best.copy(),
        "config": config,
    }


def restore_checkpoint(
    state: Checkpoint,
    *,
    source: Path,
    module: TextModule,
    fingerprint: str,
    optimizer: Optimizer | None = None,
) -> None:
    """Load what `checkpoint_state` returned, but for what `restore_callbacks` loads.

    Args:
        state: as read by `read_checkpoint`.
        source: names the file in errors.
        module: built with the settings of the saved one.
        fingerprint: of the module's frozen parameters.
        optimizer: None to leave it out (for evaluation).

    Raises:
        UserError: the checkpoint is of another model, module, reference or number of processes.
    """
    saved: Mapping[str, object] = state
    # An evaluation reads the parameters only, so it may have another module or reference.
    for name, mine in (("module", type(module).__name__), ("reference", module.policy.reference_kind)):
        if saved[name] != mine and optimizer is not None:
            raise UserError(
                f"checkpoint: {source} has {name} {saved[name]}, this run has {mine}; they must be the same"
            )
    # Trained parameters on other frozen ones, for example an adapter on another base, would run without an error.
    if state["fingerprint"] != fingerprint:
        raise UserError(f"checkpoint: {source} is of another model; its frozen parameters are not those of this one")
    load_parameters(module, state["parameters"], source=source)
    module.load_progress_state(state["progress"])
    if optimizer is not None:
        optimizer.load_state_dict(_sharded(state["optimizer"], optimizer))
        # A run may be resumed in another precision, so either side may have no scaler.
        if module.backend.scaler is not None and state["scaler"]:
            module.backend.scaler.load_state_dict(state["scaler"])


def restore_callbacks(state: Checkpoint, *, source: Path, callbacks: Sequence[Callback]) -> None:
    """Load the states of callbacks, and continue the random streams.

    Args:
        state: as read by `read_checkpoint`.
        source: names the file in errors.
        callbacks: the same list as when saving.

    Raises:
        UserError: the checkpoint is of another number of processes.
    """
    for index, item in enumerate(callbacks):
        own = state["callbacks"].get(_callback_key(index, item))
        if own:
            item.load_state_dict(own)
    # Last, so that nothing of what is loaded here draws from the restored streams.
    restore_random_states(state["random"], source=source)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a checkpoint, its tensors on the CPU; no code of the file runs.

    Args:
        path: a file that `CheckpointFolder` wrote.

    Raises:
        UserError: the file does not exist, is incomplete, is no checkpoint, or has another format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: {path} does not exist; expected a checkpoint that `ippo fit` wrote")
    # weights_only: any other pickle may run code of whoever wrote it.
    try:
        # To the CPU: the device that the file names may not exist on this machine.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"checkpoint: {path} cannot be read ({reason})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"checkpoint: {path} is no checkpoint; expected one that `ippo fit` wrote")
    if state["format"] != FORMAT:
        written = f"ippo-lightning {state.get('version', 'of another version')} in format {state['format']}"
        raise UserError(
            f"checkpoint: {path} was written by {written}, and {ippo_lightning.__version__} reads format {FORMAT}; "
            "resume with that version, or train again"
        )
    return cast(Checkpoint, state)


def load_parameters(module: BaseModule, parameters: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy saved values into the trained parameters, which must have the same names and shapes.

    Args:
        module: changed in place.
        parameters: full tensors by name, also for a sharded module.
        source: names the file in errors.

    Raises:
        UserError: a name or a shape differs; nothing is copied then.
    """
    trainable = module.trained_parameters()
    # Names before shapes, because only a common name has two shapes to compare.
    differing = sorted(set(trainable) ^ set(parameters)) or sorted(
        name for name in trainable if trainable[name].shape != parameters[name].shape
    )
    if differing:
        raise UserError(f"checkpoint: {source} is of another model; the first parameter that differs is {differing[0]}")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(sharded_like(parameters[name], parameter))


def _sharded(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Shard an optimizer's saved tensors as its parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))

    def sharded(number: int, entry: Any) -> Any:
        # Moments have the shape of their parameter; the count of steps is a number, which each rank keeps in full.
        is_of_parameter = isinstance(entry, Tensor) and entry.shape == owners[number].shape
        return sharded_like(entry, owners[number]) if is_of_parameter else entry

    per_parameter = {
        number: {name: sharded(number, entry) for name, entry in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": per_parameter}


def frozen_fingerprint(module: nn.Module) -> str:
    """Return a short text that changes when the frozen parameters change: a checkpoint does not contain them.

    Compute it before the first forward: on a CPU, a forward may store 4-bit weights in another order.

    Args:
        module: names, shapes, dtypes and 64 entries of every frozen parameter count.
    """
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().flatten()
        if len(flat) and not parameter.is_meta:
            # As bytes, because NumPy has no bfloat16.
            entries = flat[:: max(len(flat) // _SAMPLED, 1)][:_SAMPLED].cpu()
            digest.update(entries.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class CheckpointFolder:
    """The checkpoints of one run: the newest few by iteration, the newest also as `last.ckpt`, and `best.ckpt`.

    Args:
        path: created with the first checkpoint.
        keep_last: how many stay.
    """

    def __init__(self, path: Path, *, keep_last: int = 1) -> None:
        self.path = path
        self.keep_last = keep_last

    @property
    def last(self) -> Path:
        """Second name of the newest checkpoint."""
        return self.path / LAST_CHECKPOINT

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self.path / BEST_CHECKPOINT

    def newest_first(self) -> list[Path]:
        """Return the checkpoints by iteration, complete or not."""
        return sorted(self.path.glob(CHECKPOINT_PATTERN), reverse=True)

    def read_newest(self) -> tuple[Path, Checkpoint]:
        """Return the newest complete checkpoint; one that cannot be read is skipped with a warning.

        Raises:
            UserError: no checkpoint can be read.
        """
        paths = self.newest_first()
        for path, older in zip(paths, [*paths[1:], None], strict=False):
            # With no older one left, the error is what the user has to see.
            state = _read_or_warn(path) if older is not None else read_checkpoint(path)
            if state is not None:
                return path, state
        raise UserError(f"checkpoint: {self.path} has none; expected one that `ippo fit` wrote")

    def write(self, state: Checkpoint, *, iteration: int, is_best: bool) -> None:
        """Write a checkpoint and delete the oldest; only rank 0 writes.

        Args:
            state: see `checkpoint_state`.
            iteration: iterations done.
            is_best: whether it becomes `best.ckpt`.

        Raises:
            OSError: it cannot be written; older ones stay.
        """
        if rank() != 0:
            return
        path = self.path / checkpoint_name(iteration)
        try:
            write_whole(path, lambda file: torch.save(dict(state), file))
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
            raise OSError(f"checkpoint: {path} cannot be written ({reason}); older ones are complete") from error
        # Second names of the same file: they take no space, and stay when the first name is deleted below.
        link_whole(path, self.last)
        if is_best:
            link_whole(path, self.best)
        # Only now, so that a crash at any moment leaves one complete checkpoint.
        for old in self.newest_first()[self.keep_last :]:
            old.unlink(missing_ok=True)
        # Left by a run that was killed while it wrote.
        for left_over in self.path.glob("*" + PARTIAL):
            left_over.unlink(missing_ok=True)


def _read_or_warn(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except UserError as error:
        warnings.warn(f"{error}; an older one is used", stacklevel=3)
        return None


def _callback_key(index: int, callback: Callback) -> str:
    # With the index, because two callbacks of one class may have the same `state_key`.
    return f"{index}:{getattr(callback, 'state_key', type(callback).__qualname__)}"


def _state_of(callback: Callback) -> dict[str, Any]:
    # An object with hooks and without Lightning's base class is a callback, too; it may have no state.
    state: dict[str, Any] = callback.state_dict() if hasattr(callback, "state_dict") else {}
    return state
