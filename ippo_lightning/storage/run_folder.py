"""The folders that runs, comparisons and reports leave on disk: the one place that knows the names in them."""

from __future__ import annotations

import json
import math
import re
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

# A run.
CONFIG = "config.yaml"
HISTORY = "history.jsonl"
EVALUATIONS = "evaluations.jsonl"
EPISODES = "episodes.jsonl"
RESULTS = "results.json"
"""Final numbers: of a run, or of a comparison with all its methods."""
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
CHECKPOINT_PATTERN = "iteration_*.ckpt"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
MODEL = "model"
CSV = "csv"
COMPLETIONS = "completions"
NONFINITE = "nonfinite"
"""Folder of the steps whose loss or gradient was not finite."""
READABLE = (CONFIG, HISTORY, EVALUATIONS, EPISODES, RESULTS)
"""The files of a run that a report reads; at least one of them makes a folder the folder of a run."""
_APPENDED = (HISTORY, EVALUATIONS, EPISODES)
"""Files with one line per iteration, episode or evaluation."""

# A comparison: the runs `<method>/seed_<n>`, each with these two beside its own files, and the listing.
COMPARISON = "comparison.json"
LOG = "log.txt"
FINGERPRINT = "fingerprint.txt"

# A report.
REPORT = "report.html"
REPORT_FOLDER = "report"
"""Where the report of a single run goes, inside the run's folder."""
TABLE = "table.txt"
RESULTS_MARKDOWN = "results.md"
FIGURES = "figures"

JsonObject = Mapping[str, Any]
"""One line of a log, or one file, as JSON. What a value is, its reader has to check: anybody may have written it."""

_HELD: dict[Path, IO[str]] = {}
"""Lock files that this process keeps open, by folder. The lock ends when its file is closed."""


def seed_folder(root: Path, *, method: str, seed: int) -> Path:
    """Return the folder of one run of a comparison.

    Args:
        root: the comparison's folder.
        method: the method's name.
        seed: the run's seed.
    """
    return root / method / f"seed_{seed}"


def seed_of(folder: Path) -> int | None:
    """Return the seed of a run of a comparison; None if the folder's name contains none.

    Example:
        >>> seed_of(Path("runs/demo/ppo/seed_3"))
        3
    """
    found = re.fullmatch(r"seed_(\d+)", folder.name)
    return int(found[1]) if found else None


def checkpoint_name(iteration: int) -> str:
    """Return the name of an iteration's checkpoint; names sort as their iterations do."""
    return f"iteration_{iteration:07d}.ckpt"


def nonfinite_path(folder: Path, *, iteration: int, rank: int) -> Path:
    """Return the file of a step whose loss or gradient is not finite.

    Args:
        folder: the run's folder.
        iteration: counted from 0.
        rank: each rank has passes, and so a file, of its own.
    """
    return folder / NONFINITE / f"step_{iteration:07d}{_rank_suffix(rank)}.pt"


def nonfinite_files(folder: Path, *, rank: int) -> list[Path]:
    """Return the files of a rank's steps that were not finite, the oldest step first.

    Args:
        folder: the run's folder; it need not exist.
        rank: whose files.
    """
    name = re.compile(rf"step_(\d+){_rank_suffix(rank)}\.pt")
    found = [path for path in (folder / NONFINITE).glob("step_*.pt") if name.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1].removesuffix(".pt")))


def _rank_suffix(rank: int) -> str:
    return f"_rank_{rank}" if rank else ""


def completions_path(folder: Path, *, iteration: int) -> Path:
    """Return the parquet file with an iteration's completions.

    Args:
        folder: the run's folder.
        iteration: counted from 0.
    """
    return folder / COMPLETIONS / f"iteration_{iteration:07d}.parquet"


class RunFolder:
    """The folder of one run.

    Args:
        path: `begin` creates it if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        """The folder of the final model, which plain transformers can load."""
        return self.path / MODEL

    def begin(self, *, resume: bool, overwrite: bool) -> bool:
        """Create and lock the folder; return whether it has a checkpoint to resume from.

        Args:
            resume: continue the run in the folder, if there is one.
            overwrite: remove the run in the folder, if there is one.

        Raises:
            UserError: the folder contains a run and neither `resume` nor `overwrite` is true, another process runs
                in it, or it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"loop.run_dir: {self.path} cannot be created ({error.strerror}); name a folder") from error
        # First: another process may still write into the folder.
        self._lock()
        if resume and any(self.checkpoints.glob(CHECKPOINT_PATTERN)):
            return True
        if (self.path / HISTORY).exists() and not (overwrite or resume):
            raise UserError(
                f"loop.run_dir: {self.path} already contains a run; name another folder, "
                "or set loop.resume or loop.overwrite to true"
            )
        # A run that was killed before its first checkpoint leaves lines that the new run would append to.
        if any((self.path / name).exists() for name in _APPENDED):
            self.clear()
        return False

    def _lock(self) -> None:
        """Lock the folder against other processes until this one releases it or ends."""
        # This process may have locked the folder before; a second open file would not get the lock.
        self.release()
        if fcntl is None:
            return
        held = (self.path / LOCK).open("w")
        try:
            # The system drops this lock when the process ends, even after a kill; a file with a process id would stay.
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held.close()
            raise UserError(f"loop.run_dir: a run is under way in {self.path}; wait for it, or name another") from error
        _HELD[self.path.resolve()] = held

    def release(self) -> None:
        """Unlock the folder."""
        held = _HELD.pop(self.path.resolve(), None)
        if held is not None:
            held.close()

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else: a user may keep own files in the folder."""
        for name in (*_APPENDED, RESULTS):
            (self.path / name).unlink(missing_ok=True)
        for name in (CHECKPOINTS, COMPLETIONS, CSV, MODEL, NONFINITE):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def append(self, name: str, row: JsonObject) -> None:
        """Append one JSON line to file `name`; NaN and infinity become null."""
        # Appended: a crash can only cut off the last line, which every reader of these files skips.
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def write(self, name: str, content: JsonObject) -> None:
        """Write file `name` as JSON, completely or not at all."""
        write_text_whole(self.path / name, json.dumps(finite(content), indent=2) + "\n")

    def read_rows(self, name: str) -> list[JsonObject]:
        """Return the complete lines of file `name`; empty if there is no such file."""
        path = self.path / name
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if math.isfinite(_iteration(line))]

    def forget_after(self, iteration: int) -> None:
        """Remove the lines that a resumed run will write again.

        Args:
            iteration: the first iteration that the resumed run does.
        """
        for name in _APPENDED:
            path = self.path / name
            if path.exists():
                # An evaluation before iteration 5 carries the number 5: it belongs to the five iterations already done.
                last = iteration if name == EVALUATIONS else iteration - 1
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                write_text_whole(path, "".join(line + "\n" for line in lines if _iteration(line) <= last))


def finite(value: object) -> Any:
    """Return a copy of `value` with None for every NaN and infinity, at any depth; JSON has no such numbers."""
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
        return math.inf  # a crash cut the line off; infinity counts as "after" every iteration
