"""Two processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

TIME_LIMIT = 180
"""Seconds; a hang is what these tests are about, so it must end."""


@dataclass(frozen=True)
class Outcome:
    """What the two processes left behind."""

    folder: Path
    ranks: tuple[dict[str, Any], dict[str, Any]]

    def tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What each rank saved under `name`."""
        first, second = (torch.load(self.folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in (0, 1))
        return first, second


def outcome_of(script: Path, folder: Path) -> Outcome:
    """Run a script that writes `rankN.json`, and read it."""
    run_on_two_ranks(script, folder)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    return Outcome(folder, (ranks[0], ranks[1]))


def run_on_two_ranks(script: Path, folder: Path) -> None:
    """Run a script under torchrun; kill the whole family where it takes too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(script), str(folder)],
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
