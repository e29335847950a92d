"""What `ippo fit` prints at its end: where the model is, and what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from ippo_lightning.storage.run_folder import LAST_CHECKPOINT, RunFolder


def ending_lines(folder: RunFolder) -> list[str]:
    """Return the lines, the commands with the real paths.

    Args:
        folder: of a run that is done.
    """
    run = shlex.quote(str(folder.path))
    return [
        *_places(folder),
        "Next:",
        f"  ippo evaluate {run} --samples 8",
        f"  ippo report {run}",
        f"  ippo export {run}",
    ]


def _places(folder: RunFolder) -> list[str]:
    # an adapter is saved alone and merged into its base
    names = {"Model": folder.model, "Merged model": folder.model / "merged", "Adapter": folder.model / "adapter"}
    found = {name: path for name, path in names.items() if _is_model(path)}
    last = folder.checkpoints / LAST_CHECKPOINT
    if not found and last.is_file():
        found = {"Checkpoint": last}
    return [f"{name}: {path}" for name, path in found.items()]


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
