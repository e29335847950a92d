"""Two processes, and the files they write."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import forked_ranks
import pytest
import torch

TIME_LIMIT = 180
"""Seconds. These tests are about hangs, so a hang must end."""


@dataclass(frozen=True)
class Outcome:
    """What the two processes wrote."""

    folder: Path
    ranks: tuple[dict[str, Any], dict[str, Any]]

    def tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return what each rank saved under `name`."""
        first, second = (torch.load(self.folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in (0, 1))
        return first, second


def outcome_of(script: Path, factory: pytest.TempPathFactory, *arguments: str) -> Outcome:
    """Run a script that writes `rankN.json`, once for all workers of pytest-xdist, and read what it wrote."""
    base = factory.getbasetemp()
    # Each worker has a folder of its own below the folder of the session.
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = session / "_".join([script.stem, *arguments])
    with (session / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            run_forked_ranks(script, folder, *arguments)
            (folder / "done").touch()
    ranks = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    return Outcome(folder, (ranks[0], ranks[1]))


def start_method() -> Literal["fork", "spawn"]:
    """A fork imports nothing again. Where torch sees a device, its threads do not survive one."""
    return "spawn" if torch.cuda.is_available() else "fork"


def run_forked_ranks(script: Path, folder: Path, *arguments: str) -> None:
    """Run a script on two ranks that share one import."""
    _run_to_end([sys.executable, forked_ranks.__file__, str(script), str(folder), *arguments], folder)


def run_on_two_ranks(script: Path, folder: Path, *arguments: str) -> None:
    """Run a script under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    _run_to_end([*command, str(script), str(folder), *arguments], folder)


def _run_to_end(command: list[str], folder: Path) -> None:
    """Run a command; kill it with all its children if it takes too long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        try:
            code = process.wait(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"two ranks did not end in {TIME_LIMIT} s:\n{log.read_text(encoding='utf-8')[-3000:]}")
    assert code == 0, log.read_text(encoding="utf-8")[-5000:]
