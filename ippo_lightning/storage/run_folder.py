"""The folders that runs, comparisons and reports leave on disk: the one place that knows the names in them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.storage.atomic import sync_file, sync_folder, write_text_whole
from ippo_lightning.storage.checksums import with_checksum
from ippo_lightning.storage.locks import FolderLock, hold
from ippo_lightning.storage.run_logs import RunLogs

# A run.
CONFIG = "config.yaml"
ORIGIN = "origin.json"
"""The command, the versions and the kind of machine with which a run began."""
HISTORY = "history.jsonl"
EVALUATIONS = "evaluations.jsonl"
EPISODES = "episodes.jsonl"
RESULTS = "results.json"
"""Final numbers: of a run, or of a comparison with all its methods."""
TEST_PROMPTS = "test_prompts.json"
"""What the final test of a run found for each prompt: counts without texts."""
CHECKPOINTS = "checkpoints"
CHECKPOINT_PATTERN = "iteration_*.ckpt"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
DAMAGED = ".damaged"
"""Suffix of a checkpoint that could not be read, when the run went on from an older one."""
MODEL = "model"
CSV = "csv"
COMPLETIONS = "completions"
FRAMES = "episode_frames"
"""Folder of the rendered episodes of a run in an environment."""
MOST_FRAMES, MOST_PIXELS = 200, 640
"""Limits of a rendered episode: its frames, and the longer side of each."""
NONFINITE = "nonfinite"
"""Folder of the steps whose loss or gradient was not finite."""
BUFFERS = "buffers"
"""Folder of what repeats the update of an iteration: its rows, and the parameters before."""
EVALUATED = "evaluations"
"""Folder of the evaluations of `ippo evaluate RUN`, one folder each."""
START = "start"
"""Name of the model that a run began with, in a command and in the settings of an evaluation."""
READABLE = (CONFIG, HISTORY, EVALUATIONS, EPISODES, RESULTS)
"""The files of a run that a report reads; at least one of them makes a folder the folder of a run."""
APPENDED = (HISTORY, EVALUATIONS, EPISODES)
"""Files with one line per iteration, episode or evaluation."""
_EARLIER_RESULTS_PATTERN = "results_*.json"

# A comparison: the runs `<method>/seed_<n>`, each with these two beside its own files, and the listing.
COMPARISON = "comparison.json"
LOG = "log.txt"
FINGERPRINT = "fingerprint.txt"
FINGERPRINT_VARIABLE = "IPPO_COMPARE_FINGERPRINT"
"""Environment variable by which a comparison tells a run its fingerprint."""
FOLDER_VARIABLE = "IPPO_COMPARE_FOLDER"
"""Environment variable by which a comparison tells a run its folder, which the run locks before all else."""

# An evaluation of `ippo evaluate RUN`.
EVALUATION = "evaluation.json"
EVALUATION_SETTINGS = "settings.json"
ITEMS = "items.parquet"
PLAYED = "episodes.parquet"
PARTS = "parts"
"""Folder of the batches that are done, until all are."""
DIFFERENCES = "differences.json"

# A report.
REPORT = "report.html"
REPORT_FOLDER = "report"
"""Where the report of a single run goes, inside the run's folder."""
TABLE = "table.txt"
RESULTS_MARKDOWN = "results.md"
FIGURES = "figures"

DIAGNOSIS, TRACE, INTERVENTION = "diagnosis", "trace", "intervention"
"""Where `ippo diagnose`, `ippo trace` and `ippo intervene` write, inside the run's folder."""

JsonObject = Mapping[str, Any]
"""One line of a log, or one file, as JSON. What a value is, its reader has to check: anybody may have written it."""


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


_FOLDERS = (
    MODEL, CHECKPOINTS, COMPLETIONS, FRAMES, NONFINITE, BUFFERS, EVALUATED, DIAGNOSIS, TRACE, INTERVENTION
)  # fmt: skip
"""What a run or a command about it wrote."""


class RunFolder:
    """The folder of one run.

    Args:
        path: `begin` creates it if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: FolderLock | None = None
        self._earlier_csv: dict[Path, tuple[int, int]] = {}
        """Files of a CSV logger that `begin` found, with the identity of what they contained."""
        self.logs = RunLogs(self.path, APPENDED, copied=(HISTORY, EVALUATIONS), evaluations=EVALUATIONS)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        """The folder of the final model, which plain transformers can load."""
        return self.path / MODEL

    def begin(self, *, resume: bool, overwrite: bool) -> bool:
        """Create and lock the folder; return whether it has a checkpoint to resume from. Nothing else changes.

        Args:
            resume: continue the run in the folder, if there is one.
            overwrite: the run in the folder, if there is one, may be removed.

        Raises:
            UserError: the folder contains a run and neither `resume` nor `overwrite` is true, or a run that has ended
                and has no checkpoint to resume from; another run is under way in it; it contains a comparison; or it
                cannot be created or written into.
        """
        if (self.path / COMPARISON).is_file():
            raise UserError(f"loop.run_dir: {self.path} contains a comparison; name another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"loop.run_dir: {self.path} cannot be created ({error.strerror}); name a folder") from error
        # First: another run may still write into the folder.
        try:
            self._lock = hold(self.path)
        except OSError as error:
            raise UserError(
                f"loop.run_dir: {self.path} cannot be written into ({error.strerror}); name another folder"
            ) from error
        if self._lock is None:
            raise UserError(f"loop.run_dir: a run is under way in {self.path}; wait for it, or name another")
        self._earlier_csv = {path: _stamp(path) for path in (self.path / CSV).rglob("*") if path.is_file()}
        if resume and self.has_checkpoint():
            return True
        if overwrite:
            return False
        # A run that was killed before its first checkpoint leaves lines, and nothing that cannot be made again.
        is_in_the_way = self.has_ended() if resume else self.has_run()
        if is_in_the_way:
            ways = "loop.overwrite" if resume else "loop.resume or loop.overwrite"
            content = "a run without a checkpoint to resume from" if resume else "a run"
            raise UserError(
                f"loop.run_dir: {self.path} already contains {content}; name another folder, or set {ways} to true"
            )
        return False

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint under any name, complete or not."""
        names = (CHECKPOINT_PATTERN, LAST_CHECKPOINT, BEST_CHECKPOINT)
        return any(True for name in names for _ in self.checkpoints.glob(name))

    def has_ended(self) -> bool:
        """Return whether a run came to its end here: there are final numbers or a final model."""
        return (self.path / RESULTS).exists() or (self.model.exists() and self._has_lines())

    def has_run(self) -> bool:
        """Return whether there is anything of a run."""
        return self.has_ended() or self.has_checkpoint() or self._has_lines()

    def has_run_beside(self, name: str) -> bool:
        """Return whether there is anything of a run besides file `name`."""
        has_other = any((self.path / other).exists() for other in READABLE if other != name)
        return has_other or self.has_checkpoint()

    def _has_lines(self) -> bool:
        return any((self.path / name).exists() for name in self.logs.names)

    def release(self) -> None:
        """Unlock the folder, if `begin` locked it."""
        if self._lock is not None:
            self._lock.release()

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else: a user may keep own files in the folder."""
        # Without a run, folders of these names are the user's own.
        if not self.has_run():
            return
        # The end first and the lines last: what a kill leaves on the way is an older state of the run, or no run.
        for path in [self.path / RESULTS, self.path / TEST_PROMPTS, *self.path.glob(_EARLIER_RESULTS_PATTERN)]:
            path.unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        # A callback of the new run may have logged already: its logger replaced the file, and writes into its folder.
        for path, stamp in self._earlier_csv.items():
            if path.exists() and _stamp(path) == stamp:
                path.unlink()
        for name in self.logs.names:
            (self.path / name).unlink(missing_ok=True)

    def set_fingerprint(self, fingerprint: str | None) -> None:
        """Write by which settings a comparison knows the run, or remove what an earlier run had.

        Args:
            fingerprint: None for a run outside a comparison.
        """
        if fingerprint is None:
            (self.path / FINGERPRINT).unlink(missing_ok=True)
        else:
            write_text_whole(self.path / FINGERPRINT, fingerprint)

    def set_results_aside(self, *, iteration: int) -> None:
        """Rename the results of an earlier end, before the run goes on: they are not those of the longer run.

        Args:
            iteration: at which the run goes on; it becomes a part of the new name.
        """
        path = self.path / RESULTS
        if path.exists():
            path.replace(self.path / _EARLIER_RESULTS_PATTERN.replace("*", f"{iteration:07d}"))
            sync_folder(self.path)

    def sync(self) -> None:
        """Force all files of the run to disk, also those of loggers and callbacks.

        Raises:
            OSError: the disk is full or broken.
        """
        for path in self.path.rglob("*"):
            # A user may keep read-only files here.
            if path.is_file() and os.access(path, os.W_OK):
                sync_file(path)
        sync_folder(self.path)

    def append(self, name: str, row: JsonObject) -> None:
        """Append one JSON line to file `name`; NaN and infinity become null."""
        # Appended: a crash can only cut off the last line, which every reader of these files skips.
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def write(self, name: str, content: JsonObject, *, indent: int | None = 2) -> None:
        """Write file `name` as JSON with a checksum, completely or not at all; without `indent` on one line."""
        write_text_whole(self.path / name, json.dumps(with_checksum(finite(content)), indent=indent) + "\n")

    def read_rows(self, name: str) -> list[JsonObject]:
        """Return the complete lines of file `name`; empty if there is no such file."""
        return self.logs.read_rows(name)


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def finite(value: object) -> Any:
    """Return a copy of `value` with None for every NaN and infinity, at any depth; JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
