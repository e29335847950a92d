"""A run and an export that end at any one of their file operations: after a resume, all is that of a run left alone.

The end is a kill, a signal that the run may answer, or a power failure, which keeps of each file only what was forced
to disk.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import TINY
from file_faults import SMALL_EXPERIMENT, lose_power, operations_of
from run_folders import assert_same_runs

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.run.checkpoint_folder import CheckpointFolder

KINDS = ("kill", "terminate", "power failure")
PARTS = 16
"""Each slow test tries every sixteenth operation, so that it ends within its time."""
EXPERIMENT: dict[str, Any] = {
    **SMALL_EXPERIMENT,
    "seed_everything": 3,
    "loop": {
        **SMALL_EXPERIMENT["loop"],
        "run_dir": "run",
        "max_iterations": 3,
        "resume": True,
        "progress_bar": False,
    },
}


@dataclass
class Place:
    """A server of faults, and the run and the export that no fault befell."""

    folder: Path
    server: subprocess.Popen[str]
    operations: dict[str, int]
    """How many there are, by job."""
    orders: int = 0

    def do(self, folder: Path, job: str, *, fault: str = "none", at: int = -1) -> int:
        """Do a job in `folder`; return its exit status."""
        order = {"folder": str(folder), "job": job, "fault": fault, "at": at}
        self.orders += 1
        order |= {"journal": str(self.journal), "log": str(self.log), "number": self.orders}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        # A test that ran out of time may have left the answer to its last order.
        answers = (line.split() for line in self.server.stdout)
        return next(int(code) for number, code in answers if int(number) == self.orders)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.exists() else ""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    CausalLMPolicy(config=dict(TINY), tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(
        folder / "model"
    )
    experiment = copy.deepcopy(EXPERIMENT)
    experiment["model"]["init_args"]["policy"]["init_args"] = {"pretrained": str(folder / "model")}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    program = str(Path(__file__).parents[1] / "support" / "fault_server.py")
    server = subprocess.Popen(
        [sys.executable, program, "--config", str(folder / "experiment.yaml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    started = Place(folder, server, {})
    started.whole.mkdir()
    for job in ("fit", "export"):
        assert started.do(started.whole, job) == 0, started.tail()
        started.operations[job] = len(operations_of(started.journal))
    yield started
    server.kill()
    server.wait()


def assert_names_are_right(run: Path) -> None:
    """No derived name is that of an older checkpoint, and nothing half-written is left."""
    folder = run / "checkpoints"
    newest = max(folder.glob("iteration_*.ckpt"))
    assert (folder / "last.ckpt").samefile(newest)
    state = torch.load(newest, weights_only=True)
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert best["progress"]["iteration"] == state["best"]["iteration"]
    assert not [path for path in run.rglob("*") if path.name.endswith((".partial", ".damaged"))]


def break_and_resume(place: Place, folder: Path, job: str, *, kind: str, at: int) -> None:
    """Let a job end at an operation and do it again."""
    fault = "terminate" if kind == "terminate" else "kill"
    code = place.do(folder, job, fault=fault, at=at)
    assert code in {"kill": (-9,), "terminate": (-15, 143, 0)}[fault], (kind, at, place.tail())
    if kind == "power failure":
        lose_power(folder, place.journal, half=at % 2 == 0)
    checkpoints = CheckpointFolder(folder / "run" / "checkpoints")
    newest = max((int(path.stem[10:]) for path in checkpoints.path.glob("iteration_*.ckpt")), default=0)
    if newest and kind != "power failure":
        _, state = checkpoints.read("last")
        assert state["progress"]["iteration"] == newest
    assert place.do(folder, job) == 0, (kind, at, place.tail())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_run_survives(place: Place, folder: Path, *, kind: str, at: int) -> None:
    folder.mkdir()
    break_and_resume(place, folder, "fit", kind=kind, at=at)
    assert_same_runs(place.whole / "run", folder / "run")
    assert_names_are_right(folder / "run")


def assert_export_survives(place: Place, folder: Path, *, kind: str, at: int) -> None:
    folder.mkdir()
    # Second names, not copies: nothing here changes the files of the run.
    os.symlink(place.whole / "run", folder / "run")
    break_and_resume(place, folder, "export", kind=kind, at=at)
    assert files(folder / "export") == files(place.whole / "export"), (kind, at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_at_a_file_operation_loses_nothing(kind: str, place: Place, tmp_path: Path) -> None:
    # One in the middle of the second iteration's checkpoint, as most others; the slow tests try each one.
    number = place.operations["fit"]
    for at in {"kill": (number // 2, number - 2), "terminate": (5,), "power failure": (number // 3,)}[kind]:
        assert_run_survives(place, tmp_path / str(at), kind=kind, at=at)


def test_an_export_that_is_killed_is_completed_by_the_next(place: Place, tmp_path: Path) -> None:
    assert_export_survives(place, tmp_path / "export", kind="kill", at=place.operations["export"] - 3)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_operation_of_a_run_may_be_the_last(kind: str, part: int, place: Place, tmp_path: Path) -> None:
    for at in range(part, place.operations["fit"], PARTS):
        assert_run_survives(place, tmp_path / str(at), kind=kind, at=at)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_operation_of_an_export_may_be_the_last(kind: str, part: int, place: Place, tmp_path: Path) -> None:
    for at in range(part, place.operations["export"], PARTS):
        assert_export_survives(place, tmp_path / str(at), kind=kind, at=at)
