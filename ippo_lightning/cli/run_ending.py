"""What `ippo fit` prints at its end: where the model is, and what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from ippo_lightning.storage.run_folder import BUFFERS, LAST_CHECKPOINT, RunFolder

_OF_MODELS = ("config.json", "adapter_config.json", "policy.safetensors")
"""A folder with one of these files contains a model: a whole one, an adapter, or the networks of an environment."""


def ending_lines(folder: RunFolder, *, evaluates: Literal["prompts", "episodes"] = "prompts") -> list[str]:
    """Return the lines, the commands with the real paths.

    Args:
        folder: of a run that is done.
        evaluates: `episodes` of a run in environments, which has no language model to sample from or to export.
    """
    run = shlex.quote(str(folder.path))
    if evaluates == "episodes":
        commands = [f"  ippo evaluate {run}", f"  ippo report {run}"]
    else:
        commands = [f"  ippo evaluate {run} --samples 8", f"  ippo report {run}", f"  ippo export {run}"]
    if (folder.path / BUFFERS).is_dir():
        commands += [f"  ippo {name} {run}" for name in ("diagnose", "trace", "intervene")]
    return [*_places(folder), "Next:", *commands]


def _places(folder: RunFolder) -> list[str]:
    # an adapter is saved alone and merged into its base
    names = {"Model": folder.model, "Merged model": folder.model / "merged", "Adapter": folder.model / "adapter"}
    found = {name: path for name, path in names.items() if _is_model(path)}
    last = folder.checkpoints / LAST_CHECKPOINT
    if not found and last.is_file():
        found = {"Checkpoint": last}
    return [f"{name}: {path}" for name, path in found.items()]


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in _OF_MODELS)
