"""Checkpoints: all that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import ippo_lightning
from ippo_lightning.distributed.dtensor import full_on_rank_zero, sharded_like
from ippo_lightning.engine import random_states, restore_random_states
from ippo_lightning.engine.random_streams import RandomStates
from ippo_lightning.errors import UserError
from ippo_lightning.modules import BaseModule
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.records.finite_weights import require_finite_weights
from ippo_lightning.run.environment import environment, warn_of_environment
from ippo_lightning.run.resuming import (
    Data,
    SavedCallback,
    check_data,
    load_callbacks,
    load_optimizer,
    optimizer_name,
)
from ippo_lightning.storage.checkpoint_files import write_checkpoint_file
from ippo_lightning.storage.checksums import is_intact
from ippo_lightning.storage.run_logs import Covered

FORMAT = 3
_READABLE_FORMATS = (2, 3)
"""Format 2 has no checksum, and knows nothing of the run's logs."""
# Entries of a frozen tensor that go into the fingerprint: enough to tell models apart, while hashing all weights of a
# large model would take long at every start.
_SAMPLED = 64


class Best(TypedDict, total=False):
    """The best evaluation so far; empty before the first."""

    metric: str
    mode: str
    """Not in format 2."""
    value: float
    iteration: int
    """Iterations done before it."""
    is_written: bool
    """Whether its checkpoint is written."""


class ResumedRun(NamedTuple):
    """What continues from a checkpoint beside the module."""

    optimizer: Optimizer
    data: Data
    fingerprint: str
    """Of the frozen parameters, see `frozen_fingerprint`."""


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
    optimizer_name: str
    """Not in format 2."""
    callbacks: list[SavedCallback]
    """In format 2, a dictionary from `index:state_key` to the state."""
    data: Data
    """Not in format 2."""
    environment: dict[str, str]
    """Not in format 2."""
    random: list[RandomStates]
    best: Best
    config: str
    logs: dict[str, Covered]
    """By file name; not in format 2."""


def checkpoint_state(
    *,
    module: EvaluatedModule,
    optimizer: Optimizer,
    callbacks: list[SavedCallback],
    data: Data,
    position: Mapping[str, int],
    fingerprint: str,
    best: Best,
    config: str,
    logs: dict[str, Covered],
) -> Checkpoint:
    """Return the content of a checkpoint; every rank must call this.

    Args:
        module: its trained parameters are saved; frozen ones are loaded from their source again.
        optimizer: its state is saved in full, also if it is sharded.
        callbacks: from `saved_callbacks`.
        data: what `position` is counted in.
        position: epoch and batch of the training data, on this rank.
        fingerprint: of the frozen parameters, see `frozen_fingerprint`.
        best: the best evaluation so far.
        config: the run's configuration as YAML.
        logs: what the checkpoint covers of the run's logs.

    Raises:
        FloatingPointError: a weight is NaN or infinite; the checkpoint would take the place of a good one.
    """
    require_finite_weights(module.trained_parameters(), before="a checkpoint")
    return {
        "format": FORMAT,
        "version": ippo_lightning.__version__,
        "module": type(module).__name__,
        "reference": module.reference_kind,
        "fingerprint": fingerprint,
        "parameters": full_on_rank_zero({name: p.detach() for name, p in module.trained_parameters().items()}),
        "optimizer": full_on_rank_zero(optimizer.state_dict()),
        "scaler": module.backend.scaler.state_dict() if module.backend.scaler is not None else {},
        "progress": module.progress_state(),
        "position": dict(position),
        "optimizer_name": optimizer_name(optimizer),
        "callbacks": callbacks,
        "data": data,
        "environment": environment(),
        "random": random_states(),
        "best": best.copy(),
        "config": config,
        "logs": logs,
    }


def restore_checkpoint(
    state: Checkpoint,
    *,
    source: Path,
    module: EvaluatedModule,
    run: ResumedRun | None = None,
) -> None:
    """Load what `checkpoint_state` returned, but for what `restore_callbacks` loads.

    Args:
        state: as read by `read_checkpoint`.
        source: names the file in errors.
        module: built with the settings of the saved one; for an evaluation, no forward has been made yet.
        run: what continues beside the module; None for an evaluation, which needs the parameters only.

    Raises:
        UserError: the checkpoint is of another model, module, reference, optimizer, data or number of processes.
    """
    saved: Mapping[str, object] = state
    # An evaluation reads the parameters only, so it may have another module or reference.
    for name, mine in (("module", type(module).__name__), ("reference", module.reference_kind)):
        if saved[name] != mine and run is not None:
            raise UserError(
                f"checkpoint: {source} has {name} {saved[name]}, this run has {mine}; they must be the same"
            )
    # Trained parameters on other frozen ones, for example an adapter on another base, would run without an error.
    if run is None:
        train_as_saved(module, state["parameters"])
    if state["fingerprint"] != (frozen_fingerprint(module) if run is None else run.fingerprint):
        raise UserError(f"checkpoint: {source} is of another model; its frozen parameters are not those of this one")
    if run is not None:
        check_data(run.data, state.get("data"), source=source)
    load_parameters(module, state["parameters"], source=source)
    module.load_progress_state(state["progress"])
    if run is None:
        return
    load_optimizer(run.optimizer, state["optimizer"], name=state.get("optimizer_name"), source=source)
    # A run may be resumed in another precision, so either side may have no scaler.
    if module.backend.scaler is not None and state["scaler"]:
        module.backend.scaler.load_state_dict(state["scaler"])


def restore_callbacks(
    state: Checkpoint, *, source: Path, callbacks: Sequence[object], callback_settings: Sequence[str]
) -> None:
    """Load the states of callbacks, and continue the random streams.

    Args:
        state: as read by `read_checkpoint`.
        source: names the file in errors.
        callbacks: of this run, in any order.
        callback_settings: what they were built with, see `callback_settings`.

    Raises:
        UserError: the checkpoint is of another number of processes.
    """
    load_callbacks(callbacks, callback_settings, _saved_callbacks(state))
    warn_of_environment(state.get("environment"))
    # Last, so that nothing of what is loaded here draws from the restored streams.
    restore_random_states(state["random"], source=source)


def _saved_callbacks(state: Checkpoint) -> list[SavedCallback]:
    saved: Any = state["callbacks"]
    if isinstance(saved, dict):  # format 2
        return [{"name": key.partition(":")[2], "settings": "", "state": own} for key, own in saved.items()]
    return state["callbacks"]


def write_checkpoint(state: Checkpoint, path: Path) -> None:
    """Write a checkpoint with its checksum, completely or not at all.

    Args:
        state: see `checkpoint_state`.
        path: its folder is created if it is missing.

    Raises:
        OSError: it cannot be written; an older file of that name does not change.
    """
    iteration = int(state["progress"]["iteration"])
    try:
        write_checkpoint_file(path, lambda file: torch.save(dict(state), file), iteration=iteration)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise OSError(f"checkpoint: {path} cannot be written ({reason}); older ones are complete") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a checkpoint, its tensors on the CPU; no code of the file runs.

    Args:
        path: a file that `write_checkpoint` wrote.

    Raises:
        UserError: the file does not exist, is incomplete, is not what was written, is no checkpoint, or has another
            format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: {path} does not exist; expected a checkpoint that `ippo fit` wrote")
    try:
        is_right = is_intact(path)
        # To the CPU: the device that the file names may not exist on this machine. weights_only: any other pickle may
        # run code of whoever wrote it.
        state = torch.load(path, map_location="cpu", weights_only=True) if is_right is not False else None
    except MemoryError:
        raise
    # Whatever the reader of a file raises that may contain anything: a damaged size gives an OSError, a damaged name a
    # KeyError, and so on.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"checkpoint: {path} cannot be read ({reason})") from error
    if is_right is False:
        raise UserError(f"checkpoint: {path} cannot be read (its checksum is not that of its content)")
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"checkpoint: {path} is no checkpoint; expected one that `ippo fit` wrote")
    if state["format"] not in _READABLE_FORMATS:
        written = f"ippo-lightning {state.get('version', 'of another version')} in format {state['format']}"
        raise UserError(
            f"checkpoint: {path} was written by {written}, and {ippo_lightning.__version__} reads format {FORMAT}; "
            "resume with that version, or train again"
        )
    if is_right is None and state["format"] == FORMAT:
        raise UserError(f"checkpoint: {path} cannot be read (the checksum at its end is missing or damaged)")
    return cast(Checkpoint, state)


def train_as_saved(module: BaseModule, parameters: Mapping[str, Tensor]) -> None:
    """Freeze what was frozen in the run of a checkpoint, and no more: a callback may have done so in its `setup`.

    Args:
        module: as the configuration alone builds it.
        parameters: the trained ones of the checkpoint, by name.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in parameters)


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


def frozen_fingerprint(module: nn.Module) -> str:
    """Return a short text that changes when the frozen parameters change: a checkpoint does not contain them.

    Compute it before the first forward: on a CPU, a forward may store 4-bit weights in another order.

    Args:
        module: names, shapes, dtypes and 64 entries of every frozen parameter count.
    """
    named = module.named_parameters()
    return _fingerprint((name, parameter) for name, parameter in named if not parameter.requires_grad)


def weights_fingerprint(module: nn.Module) -> str:
    """Return a short text that changes when any parameters change, see `frozen_fingerprint`.

    Args:
        module: not sharded.
    """
    return _fingerprint(module.named_parameters())


def _fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().flatten()
        if len(flat) and not parameter.is_meta:
            # As bytes, because NumPy has no bfloat16.
            entries = flat[:: max(len(flat) // _SAMPLED, 1)][:_SAMPLED].cpu()
            digest.update(entries.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
