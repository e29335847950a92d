"""An evaluation that is killed at any of its file operations goes on, and ends with the bytes of one left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluated_run import files_of, fit_words
from file_faults import operations_of

from ippo_lightning.cli.main import main

NEVER = -1


class Evaluations:
    """Evaluates a run in processes of their own, each in a folder of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.run = place, place / "run"
        assert main(fit_words(self.run)) == 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "support" / "run_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.answer()  # it is ready

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, order: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.answer())

    def evaluate(self, output: Path, *, killed_at: int = NEVER) -> int:
        """Evaluate, and kill the process before one of its operations in the folder; return its exit status."""
        words = ["evaluate", str(self.run), "--samples", "2", "--batch_size", "2", "--output", str(output)]
        faults = {"folder": str(output), "fault": "kill", "at": killed_at, "journal": f"{output}.journal"}
        order = {"arguments": words, "largest_file": None, "log": f"{output}.log", "faults": faults}
        return self.ask({"wait": self.ask(order)})


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluations]:
    made = Evaluations(tmp_path_factory.mktemp("evaluations"))
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def whole(evaluations: Evaluations) -> tuple[dict[str, bytes], list[str]]:
    """The files of an evaluation that was left alone, and its operations."""
    output = evaluations.place / "whole"
    assert evaluations.evaluate(output) == 0, Path(f"{output}.log").read_text(encoding="utf-8")[-2000:]
    return files_of(output), operations_of(Path(f"{output}.journal"))


def places(operations: list[str], words: list[str]) -> list[int]:
    """The first operation with each of the words."""
    return [next(place for place, operation in enumerate(operations) if word in operation) for word in words]


def goes_on(evaluations: Evaluations, whole: tuple[dict[str, bytes], list[str]], kills: list[int]) -> int:
    """Kill an evaluation once at each of some operations of one process, and let it end; return its kills."""
    output, count = evaluations.place / "broken", 0
    shutil.rmtree(output, ignore_errors=True)
    for place in kills:
        status = evaluations.evaluate(output, killed_at=place)
        assert status in (0, -signal.SIGKILL), Path(f"{output}.log").read_text(encoding="utf-8")[-2000:]
        count += status != 0
    assert evaluations.evaluate(output) == 0
    left = {name: content.replace(b"/broken", b"/whole") for name, content in files_of(output).items()}
    assert left == whole[0]
    return count


@pytest.mark.slow
def test_killed_between_and_inside_its_batches(
    evaluations: Evaluations, whole: tuple[dict[str, bytes], list[str]]
) -> None:
    assert set(whole[0]) == {"evaluation.json", "items.parquet", "settings.json"}
    # While a file is open, before it has its name, and with all batches done but not in one file.
    second, third = (f"part_{number:06d}.parquet" for number in (1, 2))
    found = places(whole[1], [f"open {evaluations.place}/whole/parts/{second}", third])
    assert goes_on(evaluations, whole, found) == 2
    joined = places(whole[1], ["items.parquet"])
    assert goes_on(evaluations, whole, [joined[0], joined[0] // 2]) >= 1


@pytest.mark.slow
def test_killed_at_each_of_its_operations(evaluations: Evaluations, whole: tuple[dict[str, bytes], list[str]]) -> None:
    for place in range(len(whole[1])):
        assert goes_on(evaluations, whole, [place]) == 1, whole[1][place]
