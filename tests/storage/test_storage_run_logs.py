"""What a checkpoint covers of the logs comes back, whatever happened to the files since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ippo_lightning.storage.run_logs import Covered, RunLogs

HISTORY, EVALUATIONS, EPISODES = "history.jsonl", "evaluations.jsonl", "episodes.jsonl"


def logs_in(folder: Path) -> RunLogs:
    return RunLogs(folder, (HISTORY, EVALUATIONS, EPISODES), copied=(HISTORY, EVALUATIONS), evaluations=EVALUATIONS)


def line(iteration: int, **more: object) -> str:
    return json.dumps({"iteration": iteration, **more}) + "\n"


def write(folder: Path, iterations: int) -> None:
    """Write what a run of so many iterations has written."""
    (folder / HISTORY).write_text("".join(line(i, loss=i / 7) for i in range(iterations)), encoding="utf-8")
    (folder / EVALUATIONS).write_text("".join(line(i) for i in range(iterations + 1)), encoding="utf-8")
    (folder / EPISODES).write_text("".join(line(i, n=n) for i in range(iterations) for n in (1, 2)), encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in (HISTORY, EVALUATIONS, EPISODES)}


@pytest.fixture
def covered(tmp_path: Path) -> dict[str, Covered]:
    """What a checkpoint after three iterations covers."""
    write(tmp_path, 3)
    return logs_in(tmp_path).covered()


def cut(text: str) -> str:
    return text[:-9]


def with_a_hole(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[:1] + lines[2:])


def doubled(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[:2] + lines[1:])


def changed(text: str) -> str:
    return text.replace('"iteration": 1', '"iteration": 9')


WAYS = [cut, with_a_hole, doubled, changed, str.upper, lambda text: ""]


def test_lines_after_the_checkpoint_go(covered: dict[str, Covered], tmp_path: Path) -> None:
    before = contents(tmp_path)
    write(tmp_path, 5)
    with (tmp_path / HISTORY).open("a", encoding="utf-8") as file:
        file.write('{"iteration": 5, "lo')  # a kill cut it off
    assert logs_in(tmp_path).restore(covered, iteration=3) == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("way", WAYS, ids=["cut", "hole", "doubled", "changed", "upper", "empty"])
@pytest.mark.parametrize("name", [HISTORY, EVALUATIONS])
def test_a_log_is_completed_from_the_checkpoint(
    name: str, way: Callable[[str], str], covered: dict[str, Covered], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    (tmp_path / name).write_text(way(before[name]), encoding="utf-8")
    (problem,) = logs_in(tmp_path).restore(covered, iteration=3)
    assert problem == f"{tmp_path / name} is not what the checkpoint covers; it is completed from the checkpoint"
    assert contents(tmp_path) == before


def test_a_deleted_log_comes_back(covered: dict[str, Covered], tmp_path: Path) -> None:
    before = contents(tmp_path)
    (tmp_path / HISTORY).unlink()
    assert len(logs_in(tmp_path).restore(covered, iteration=3)) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("way", WAYS, ids=["cut", "hole", "doubled", "changed", "upper", "empty"])
def test_lost_episodes_are_named_and_the_others_stay(
    way: Callable[[str], str], covered: dict[str, Covered], tmp_path: Path
) -> None:
    text = way((tmp_path / EPISODES).read_text(encoding="utf-8"))
    (tmp_path / EPISODES).write_text(text + line(4), encoding="utf-8")
    (problem,) = logs_in(tmp_path).restore(covered, iteration=3)
    assert "lines are lost or changed" in problem
    kept = logs_in(tmp_path).read_rows(EPISODES)
    assert all(row["iteration"] < 3 for row in kept)


def test_a_file_that_grows_is_covered_as_if_it_were_read_at_once(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    for iterations in (1, 2, 5):
        write(tmp_path, iterations)  # each longer than the one before, with the same beginning
        assert logs.covered() == logs_in(tmp_path).covered()
    write(tmp_path, 2)
    assert logs.covered() == logs_in(tmp_path).covered()


def test_a_checkpoint_of_an_earlier_version_leaves_the_lines_before_it(tmp_path: Path) -> None:
    write(tmp_path, 5)
    assert logs_in(tmp_path).restore(None, iteration=3) == []
    rows = {name: [row["iteration"] for row in logs_in(tmp_path).read_rows(name)] for name in contents(tmp_path)}
    assert rows == {HISTORY: [0, 1, 2], EVALUATIONS: [0, 1, 2, 3], EPISODES: [0, 0, 1, 1, 2, 2]}


def test_lines_that_the_checkpoint_does_not_know_are_newer(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    covered = logs.covered()
    (tmp_path / EVALUATIONS).write_text(line(3), encoding="utf-8")
    assert logs.restore(covered, iteration=3) == []
    assert logs.read_rows(EVALUATIONS) == []
