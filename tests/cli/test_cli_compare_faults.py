"""A comparison that ends at any one of its file operations: the same command completes it, and each run is done once.

The end is a kill, which its runs survive, a signal, which it answers, or a power failure, which ends the runs too and
keeps of each file only what was forced to disk.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import TINY
from file_faults import SMALL_EXPERIMENT, lose_power, operations_of
from run_folders import assert_same_runs

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy

KINDS = ("kill", "terminate", "power failure")
ENDS = {"none": (0,), "kill": (-9,), "terminate": (-15, 143), "power failure": (-9,)}
"""Exit status by fault; a signal finds a handler or none."""
PARTS = 16
"""Each slow test tries every sixteenth operation, so that it ends within its time."""
RUNS = ("start/seed_3", "ppo/seed_3")
"""In the order in which they are started: an evaluation and a training."""
OF_THE_CLOCK = ("iteration_seconds", "time_parts")
UNDER_WAY = r"ippo: error: run_dir: a run is under way in compare/ppo/seed_3; wait for it, stop it, or name another .*"


@dataclass
class Place:
    """A server of comparisons, and the comparison that no fault befell."""

    folder: Path
    server: subprocess.Popen[str]
    operations: Sequence[str] = ()
    orders: int = 0

    def compare(self, folder: Path, *, fault: str = "none", **more: Any) -> dict[str, Any]:
        """Give the command in `folder`; return how it ended, which runs it started and how many of them live."""
        words = ["compare", "--config", str(self.folder / "grid.yaml")]
        place = {"folder": str(folder), "journal": str(self.journal), "log": str(self.log)}
        self.log.unlink(missing_ok=True)
        ended = self.ask({"do": "compare", "words": words, "fault": fault, "at": -1, **place, **more})
        assert ended["code"] in (*ENDS[fault], *((2,) if fault == "none" else ())), (more, self.said())
        ended["started"] = [str(Path(run).relative_to(folder / "compare")) for run in ended["started"]]
        return ended

    def wait(self) -> list[int]:
        """Let the runs of a comparison that was killed come to their end; return their exit statuses."""
        return list(self.ask({"do": "wait"})["codes"])

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.orders += 1
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps({**order, "number": self.orders}) + "\n")
        self.server.stdin.flush()
        # A test that ran out of time may have left the answer to its last order.
        answers: Iterator[dict[str, Any]] = map(json.loads, self.server.stdout)
        return next(answer for answer in answers if answer["number"] == self.orders)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def said(self) -> list[str]:
        """What the last comparison printed."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("compare_faults")
    CausalLMPolicy(config=dict(TINY), tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(
        folder / "model"
    )
    experiment = copy.deepcopy(SMALL_EXPERIMENT)
    experiment["model"]["init_args"]["policy"]["init_args"] = {"pretrained": str(folder / "model")}
    config = str(folder / "experiment.yaml")
    Path(config).write_text(yaml.safe_dump(experiment), encoding="utf-8")
    # A key order is a display order.
    methods = {"start": {"command": "evaluate", "config": [config]}, "ppo": {"config": [config]}}
    grid = {"run_dir": "compare", "methods": methods, "baseline": "start", "seeds": [3], "threads": 1}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    program = str(Path(__file__).parents[1] / "support" / "compare_server.py")
    server = subprocess.Popen(
        [sys.executable, program, "--config", config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        started = Place(folder, server)
        started.whole.mkdir()
        ended = started.compare(started.whole)
        assert ended == {"code": 0, "started": list(RUNS), "alive": 0, "number": 1}, started.said()
        started.operations = operations_of(started.journal)
        yield started
    finally:
        server.kill()
        server.wait()


def finished(comparison: Path) -> list[str]:
    return [run for run in RUNS if (comparison / run / "results.json").exists()]


def complete(place: Place, folder: Path) -> None:
    """Give the command again until it succeeds: it refuses once if a run of the killed one is under way."""
    before = finished(folder / "compare")
    ended = place.compare(folder)
    if ended["code"] == 2:
        assert len(place.said()) == 1
        assert re.fullmatch(UNDER_WAY.replace("ppo", "(ppo|start)"), place.said()[0]), place.said()
        assert ended["started"] == []
        assert place.wait() == [0]
        before = finished(folder / "compare")
        ended = place.compare(folder)
    assert ended["code"] == 0, place.said()
    # A run may end between the look at it and the command, but none that has ended is done again.
    assert not set(before) & set(ended["started"]), (before, ended)
    assert len(set(ended["started"])) == len(ended["started"])
    assert ended["alive"] == 0


def assert_same_comparisons(first: Path, second: Path) -> None:
    """Compare the runs, the listing, and the report but for its times."""
    assert files(first) == files(second)
    assert_same_runs(first / "ppo/seed_3", second / "ppo/seed_3")
    assert evaluation(first) == evaluation(second)
    for name in ("comparison.json", *(f"{run}/fingerprint.txt" for run in RUNS), *figures(first)):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert results(first) == results(second)
    for name in ("table.txt", "results.md", "report.html"):
        assert timeless(first / name) == timeless(second / name), name


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def figures(comparison: Path) -> list[str]:
    return [f"figures/{path.name}" for path in (comparison / "figures").iterdir() if path.stem not in OF_THE_CLOCK]


def evaluation(comparison: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((comparison / RUNS[0] / "results.json").read_text(encoding="utf-8"))
    return found


def results(comparison: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((comparison / "results.json").read_text(encoding="utf-8"))
    for method in found["methods"].values():
        method.pop("iteration_seconds", None)
    return found


def timeless(path: Path) -> str:
    """Return a text without its figures and its fractions, some of which are seconds; results.json has the others."""
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "figure", path.read_text(encoding="utf-8"))
    return re.sub(r" *\d+\.\d+", " number", text)


def assert_comparison_survives(place: Place, folder: Path, *, kind: str, at: int | str) -> None:
    folder.mkdir()
    ended = place.compare(folder, fault=kind, at=at)
    # Whoever stops a comparison has its processors back.
    assert kind == "kill" or ended["alive"] == 0
    if kind == "power failure":
        lose_power(folder, place.journal, half=isinstance(at, int) and at % 2 == 0)
    complete(place, folder)
    assert place.wait() == []
    assert_same_comparisons(place.whole / "compare", folder / "compare")


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        pytest.param("kill", "under way", marks=pytest.mark.slow),
        pytest.param("terminate", "under way", marks=pytest.mark.slow),
        # between the start of a run and the note of its process
        pytest.param("terminate", "after the start of compare/ppo/seed_3/log.txt", marks=pytest.mark.slow),
        # both runs have ended, and no checkpoint will give back what they lose
        pytest.param("power failure", "open compare/report.html.partial", marks=pytest.mark.slow),
    ],
)
def test_a_comparison_that_is_ended_is_completed_by_the_same_command(
    kind: str, operation: str, place: Place, tmp_path: Path
) -> None:
    at = operation if operation == "under way" else place.operations.index(operation)
    assert_comparison_survives(place, tmp_path / "broken", kind=kind, at=at)


def test_a_run_that_outlives_its_comparison_is_left_alone(place: Place, tmp_path: Path) -> None:
    ended = place.compare(tmp_path, fault="kill", at="under way", freeze=True)
    assert ended["alive"] == 1
    run = tmp_path / "compare" / "ppo" / "seed_3"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = place.compare(tmp_path)
    assert (again["code"], again["started"]) == (2, [])
    assert re.fullmatch(UNDER_WAY, "\n".join(place.said()))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert place.wait() == [0]
    assert place.compare(tmp_path)["started"] == []  # it came to its end without its comparison
    assert_same_comparisons(place.whole / "compare", tmp_path / "compare")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_operation_of_a_comparison_may_be_the_last(
    kind: str, part: int, place: Place, tmp_path: Path
) -> None:
    for at in range(part, len(place.operations), PARTS):
        assert_comparison_survives(place, tmp_path / str(at), kind=kind, at=at)
