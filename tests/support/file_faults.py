"""Faults at the file operations of a process: a signal just before one of them, or a power failure.

An operation is what Python's audit events show of files below a folder, and each fsync. The journal has a line for
each, and one for each file that is forced to disk, with its size then.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
SMALL_EXPERIMENT: dict[str, Any] = {
    "loop": {
        "max_iterations": 2,
        "evaluate_every_n_iterations": 1,
        "checkpoint_every_n_iterations": 1,
        "best_metric": "label/wrong_answer",
    },
    "model": {
        "class_path": "ippo_lightning.PPOModule",
        "init_args": {
            "reward": {
                "class_path": "ippo_lightning.rewards.grade_reward",
                "init_args": {"grader": "ippo_lightning.tasks.grade_arithmetic"},
            },
            "policy": {"class_path": "ippo_lightning.policies.CausalLMPolicy", "init_args": {}},
            "sampling": {"num_responses": 2, "max_new_tokens": 4},
            "evaluation": {"num_responses": 1, "max_new_tokens": 4},
            "update": {"minibatch_size": 8, "num_epochs": 1},
        },
    },
    "data": {
        "class_path": "ippo_lightning.data.TextDataModule",
        "init_args": {
            "task": {
                "class_path": "ippo_lightning.tasks.ArithmeticTask",
                "init_args": {"num_train": 8, "num_validation": 2, "num_test": 2, "num_influence_demonstrations": 2},
            },
            "batch_size": 4,
        },
    },
    "callbacks": [{"class_path": "ippo_lightning.callbacks.EpisodeLog"}],
}
"""Writes every kind of file of a run within seconds; the policy is left out."""


class Journal:
    """A file that several processes append lines to; it follows what this process forces to disk.

    Args:
        path: of the journal.
        before_fsync: called before each fsync of this process.
    """

    def __init__(self, path: str, *, before_fsync: Callable[[], None] = lambda: None) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.before_fsync = before_fsync
        self.fsync = os.fsync
        os.fsync = self.on_fsync  # type: ignore[assignment]

    def on_fsync(self, descriptor: int) -> None:
        self.before_fsync()
        self.fsync(descriptor)
        status = os.fstat(descriptor)
        self.write(f"synced {status.st_ino} {status.st_size}")

    def write(self, line: str) -> None:
        os.write(self.descriptor, line.encode() + b"\n")


class Faults:
    """Counts the file operations of this process and sends it a signal just before one of them.

    Args:
        order: has the `folder`, the `fault` ("none", "kill" or "terminate"), `at` which operation, and the path of the
            `journal`, which begins again.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.folder = os.path.realpath(order["folder"]) + os.sep
        self.number = SIGNALS.get(order["fault"])
        self.at = order["at"]
        self.count = 0
        Path(order["journal"]).unlink(missing_ok=True)
        self.journal = Journal(order["journal"], before_fsync=lambda: self.operation("fsync"))
        sys.addaudithook(self.on_event)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & WRITING and self.is_inside(path):
                self.operation(f"open {os.fsdecode(path)}")
        elif event in CHANGING:
            path = arguments[0]
            # `shutil.rmtree` gives names relative to an open folder.
            if isinstance(path, int) or not self.is_inside(path):
                return
            self.operation(f"{event} {os.fsdecode(path)}")

    def is_inside(self, path: str | bytes) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def operation(self, words: str) -> None:
        self.journal.write(f"operation {self.count} {words}")
        self.count += 1
        if self.count - 1 == self.at and self.number is not None:
            os.kill(os.getpid(), self.number)


def operations_of(journal: Path) -> list[str]:
    """Return the operations of a journal in words, such as `open run/results.json.partial`."""
    lines = journal.read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 2)[2] for line in lines if line.startswith("operation ")]


def lose_power(folder: Path, journal: Path, *, half: bool) -> None:
    """Cut each file to what was forced to disk, or to half of what was not."""
    synced: dict[int, int] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[0] == "synced":
            synced[int(words[1])] = int(words[2])
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            certain = min(synced.get(status.st_ino, 0), status.st_size)
            os.truncate(path, certain + (status.st_size - certain) // 2 if half else certain)
