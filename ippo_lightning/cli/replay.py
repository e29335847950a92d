"""One step of a run again, on any device and in any precision, and a table of where its numbers break."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ippo_lightning.cli.replay_table import replay_lines
from ippo_lightning.cli.settings import Precision, ReplaySettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import read_failed_step, replay_failed_step
from ippo_lightning.modules.pass_numbers import PassNumbers
from ippo_lightning.records.out_of_memory import is_out_of_memory
from ippo_lightning.run.checkpoints import (
    Checkpoint,
    frozen_fingerprint,
    load_parameters,
    read_checkpoint,
    train_as_saved,
)
from ippo_lightning.storage.checkpoint_files import newest_first
from ippo_lightning.storage.iteration_files import nonfinite_files
from ippo_lightning.storage.run_folder import NONFINITE, RunFolder
from ippo_lightning.storage.untrusted_text import visible_text

_MOST_RANKS = 1024


def chosen_step(run_dir: Path, step: int | None) -> Path:
    """Return the file of a step; of several ranks, that of the first one whose own rows broke it.

    Args:
        run_dir: folder of a run.
        step: counted from 0; None for the latest.

    Raises:
        UserError: there is no such file, or one cannot be read.
    """
    files = [path for path in _files(run_dir) if step is None or _step_of(path) == step]
    if not files:
        known = sorted({_step_of(path) for path in _files(run_dir)})
        there = f"there are steps {', '.join(map(str, known))}" if known else "no step of the run was not finite"
        wanted = f"{NONFINITE}/step_{step:07d}.pt" if step is not None else f"file in {NONFINITE}/"
        raise UserError(f"replay: {run_dir} has no {wanted}; {there}")
    latest = [path for path in files if _step_of(path) == max(map(_step_of, files))]
    if len(latest) == 1:
        return latest[0]
    return next((path for path in latest if read_failed_step(path)["failed_pass"] is not None), latest[0])


def _files(run_dir: Path) -> list[Path]:
    found: list[Path] = []
    for number in range(_MOST_RANKS):
        of_rank = nonfinite_files(run_dir, rank=number)
        if not of_rank and number:  # ranks that skip nothing have no file, so rank 0 alone may be missing
            break
        found += of_rank
    return found


def _step_of(path: Path) -> int:
    return int(path.stem.split("_")[1])


def replay_run(run_dir: Path, path: Path, module: Any, *, settings: ReplaySettings) -> str:
    """Repeat a step and return what is to be printed: at most 80 columns, without control characters.

    Args:
        run_dir: folder of the run.
        path: of the step, see `chosen_step`.
        module: built from the configuration of the run.
        settings: see `ReplaySettings`.

    Raises:
        UserError: the step is of another model, or cannot be repeated on this device in this precision.
    """
    step = read_failed_step(path)
    device = _device(settings.device)
    before = None if step["parameters"] else _checkpoint_before(run_dir, step)
    # before anything is converted or moved
    train_as_saved(module, step["parameters"] if before is None else before[1]["parameters"])
    if step["fingerprint"] and step["fingerprint"] != frozen_fingerprint(module):
        raise UserError(f"replay: {path} is of another model; its frozen parameters are not those of {run_dir}")
    origin = ""
    if before is not None:
        checkpoint, state = before
        load_parameters(module, state["parameters"], source=checkpoint)
        steps = step["iteration"] - int(state["progress"]["iteration"])
        origin = f"parameters: those of {checkpoint.name}, {steps} steps earlier"
    numbers = PassNumbers(module)
    try:
        converted, autocast = _converted(module.to(device), settings.precision, step["autocast"])
        found = replay_failed_step(converted, {**step, "autocast": autocast}, watch=numbers.recording)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = visible_text((str(error) or type(error).__name__).splitlines()[0][:200])
        raise UserError(
            f"replay: {path} cannot be repeated on {device} in {settings.precision} ({reason}); try another"
        ) from error
    head = (
        f"step {step['iteration']} of {run_dir}: {step['module']}, on {device.type}, precision {_name(settings, step)}"
    )
    return "\n".join(replay_lines(head, found, numbers, step=step, origin=origin, all_modules=settings.all))


def _name(settings: ReplaySettings, step: Mapping[str, Any]) -> str:
    if settings.precision != "run":
        return settings.precision
    return f"of the run ({step['autocast']}, mixed)" if step["autocast"] else "of the run (that of the weights)"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if (device.index or 0) < count and device.type != "meta":
            return device
    raise UserError(f"device: {name!r} is not there; expected auto, cpu, or a GPU that torch finds")


def _converted(module: Any, precision: Precision, autocast: str | None) -> tuple[Any, str | None]:
    """Return the module and the type of autocast that make a precision."""
    if precision == "run":
        return module, autocast
    bits, kind = precision.split("-")
    dtype = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}[bits]
    if kind == "mixed":
        return module, str(dtype).removeprefix("torch.")
    return module.to(dtype), None


def _checkpoint_before(run_dir: Path, step: Mapping[str, Any]) -> tuple[Path, Checkpoint]:
    """Return the newest checkpoint before the step."""
    for path in newest_first(RunFolder(run_dir).checkpoints):
        state = read_checkpoint(path)
        if int(state["progress"]["iteration"]) <= step["iteration"]:
            return path, state
    raise UserError(f"replay: the step's file has no parameters, and {run_dir} has no checkpoint before the step")
