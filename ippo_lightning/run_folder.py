"""What a run leaves on disk, line by line, so that a crash loses nothing that was finished."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError

HISTORY, EVALUATIONS, EPISODES, RESULTS, CONFIG = (
    "history.jsonl",
    "evaluations.jsonl",
    "episodes.jsonl",
    "results.json",
    "config.yaml",
)


class RunFolder:
    """The folder of one run.

    Args:
        path: made where it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest checkpoint lies."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def model(self) -> Path:
        """Where the final model lies, loadable with plain transformers."""
        return self.path / "model"

    def begin(self, *, resume: bool, overwrite: bool) -> bool:
        """Make the folder ready; return whether there is a checkpoint to go on from.

        Raises:
            UserError: the folder holds a run and neither `resume` nor `overwrite` was asked for, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"loop.run_dir: {self.path} cannot be made ({error.strerror}); name a folder") from error
        if resume and self.last_checkpoint.is_file():
            return True
        if (self.path / HISTORY).exists():
            if not (overwrite or resume):
                raise UserError(
                    f"loop.run_dir: {self.path} already holds a run; name another folder, "
                    "or set loop.resume or loop.overwrite to true"
                )
            self.clear()
        return False

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else."""
        for name in (HISTORY, EVALUATIONS, EPISODES, RESULTS):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "csv", "model"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one JSON line to file `name`; NaN and infinity become null."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write file `name` as JSON, whole or not at all."""
        partial = self.path / (name + ".partial")
        partial.write_text(json.dumps(finite(content), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.path / name)

    def forget_after(self, iteration: int) -> None:
        """Drop lines of iterations that a resumed run will do again (those at or after `iteration`)."""
        for name in (HISTORY, EPISODES, EVALUATIONS):
            path = self.path / name
            if path.exists():
                # an evaluation's number is that of iterations done before it
                last = iteration if name == EVALUATIONS else iteration - 1
                rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _iteration(line) <= last]
                path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


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
