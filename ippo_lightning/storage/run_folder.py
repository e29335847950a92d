"""What a run leaves on disk, line by line, so that a crash loses nothing that was finished."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ippo_lightning.errors import UserError
from ippo_lightning.storage.atomic import write_text_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HISTORY, EVALUATIONS, EPISODES, RESULTS, CONFIG = (
    "history.jsonl",
    "evaluations.jsonl",
    "episodes.jsonl",
    "results.json",
    "config.yaml",
)
LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}
"""Folders that this process holds."""


class RunFolder:
    """The folder of one run.

    Args:
        path: made where it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Where the final model lies, loadable with plain transformers."""
        return self.path / "model"

    def begin(self, *, resume: bool, overwrite: bool) -> bool:
        """Make the folder ready and lock it; return whether there is a checkpoint to go on from.

        Raises:
            UserError: the folder holds a run and neither `resume` nor `overwrite` was asked for, a run is under way
                in it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"loop.run_dir: {self.path} cannot be made ({error.strerror}); name a folder") from error
        self._lock()
        if resume and any(self.checkpoints.glob("iteration_*.ckpt")):
            return True
        if (self.path / HISTORY).exists() and not (overwrite or resume):
            raise UserError(
                f"loop.run_dir: {self.path} already holds a run; name another folder, "
                "or set loop.resume or loop.overwrite to true"
            )
        if any((self.path / name).exists() for name in (HISTORY, EVALUATIONS, EPISODES)):  # a run cut short too
            self.clear()
        return False

    def _lock(self) -> None:
        """Hold the folder against other processes until this one ends, however it ends, or releases it."""
        self.release()
        if fcntl is None:
            return
        held = (self.path / LOCK).open("w")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held.close()
            raise UserError(f"loop.run_dir: a run is under way in {self.path}; wait for it, or name another") from error
        _HELD[self.path.resolve()] = held

    def release(self) -> None:
        """Let other processes have the folder."""
        held = _HELD.pop(self.path.resolve(), None)
        if held is not None:
            held.close()

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else."""
        for name in (HISTORY, EVALUATIONS, EPISODES, RESULTS):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "completions", "csv", "model"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one JSON line to file `name`; NaN and infinity become null."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write file `name` as JSON, whole or not at all."""
        write_text_whole(self.path / name, json.dumps(finite(content), indent=2) + "\n")

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of file `name`, empty where there is none."""
        path = self.path / name
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if math.isfinite(_iteration(line))]

    def forget_after(self, iteration: int) -> None:
        """Drop lines of iterations that a resumed run will do again (those at or after `iteration`)."""
        for name in (HISTORY, EPISODES, EVALUATIONS):
            path = self.path / name
            if path.exists():
                # an evaluation's number is that of iterations done before it
                last = iteration if name == EVALUATIONS else iteration - 1
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                write_text_whole(path, "".join(line + "\n" for line in lines if _iteration(line) <= last))


def finite(value: Any) -> Any:
    """Return `value` with every float that JSON has no word for as None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a crash cut off
