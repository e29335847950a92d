"""`ippo diagnose`: from a run that kept its buffers to a page, numbers and a few lines."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import write
from hostile_texts import hostile_texts
from kept_runs import FROZEN_LAKE
from rich.cells import cell_len

from ippo_lightning.analysis import read_round
from ippo_lightning.analysis.monte_carlo import monte_carlo_of_transitions
from ippo_lightning.cli.main import main
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.iteration_files import buffer_path


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in FrozenLake that kept its three iterations."""
    folder = tmp_path_factory.mktemp("diagnose") / "lake"
    assert main([*FROZEN_LAKE, "--method", "keep_buffers", "--loop.run_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(lake: Path) -> Path:
    """The page of the run without any option."""
    assert main(["diagnose", str(lake)]) == 0
    return lake / "diagnosis" / "iteration_0000002" / "diagnosis.html"


def numbers_beside(page: Path) -> dict[str, Any]:
    """What `diagnosis.json` contains, with its checksum compared."""
    numbers: dict[str, Any] = json.loads((page.parent / "diagnosis.json").read_text(encoding="utf-8"))
    assert not has_wrong_checksum(numbers)
    return numbers


def diagnosed(run: Path, capsys: Any, *words: str) -> tuple[dict[str, Any], str, list[str]]:
    """The numbers, the page and the lines of a diagnosis."""
    capsys.readouterr()
    assert main(["diagnose", str(run), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines[:-1]), lines
    page = Path(lines[-1])
    return numbers_beside(page), page.read_text(encoding="utf-8"), lines


def test_the_latest_iteration_becomes_one_file_that_needs_no_other(page: Path) -> None:
    numbers, text = numbers_beside(page), page.read_text(encoding="utf-8")
    assert (numbers["iteration"], numbers["target"], numbers["baseline"]) == (2, "return", "states")
    assert numbers["records"] + numbers["records_unfinished"] == 64
    assert numbers["lowest"]["count"] == numbers["records"] // 20
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('<img src="data:image/png;base64,') == 4
    assert numbers["command"].endswith("--iteration 2")
    assert numbers["command"] in text.replace("&#39;", "'")


def test_the_same_diagnosis_has_the_same_numbers_and_tells_them(
    lake: Path, page: Path, capsys: Any, tmp_path: Path
) -> None:
    again, _, lines = diagnosed(lake, capsys, "--output", str(tmp_path / "again"))
    first = numbers_beside(page)
    assert Path(lines[-1]) == tmp_path / "again" / "diagnosis.html"
    assert " ".join(" ".join(lines).split()).startswith(first["headline"])
    for numbers in (first, again):
        del numbers["command"], numbers["sha256"]
    assert again == first


def test_the_numbers_of_the_ends_are_those_of_the_buffer(lake: Path, capsys: Any) -> None:
    numbers, _, _ = diagnosed(lake, capsys, "--iteration", "1", "--records", "20", "--baseline", "critic")
    episodes = read_round(lake, 1).episodes
    true: Any = monte_carlo_of_transitions(episodes, gamma=0.99, baseline="critic").advantages  # type: ignore[arg-type]
    lowest = numbers["lowest_records"]
    assert [one["score"] for one in lowest] == sorted(one["score"] for one in lowest)
    assert lowest[-1]["score"] <= numbers["highest_records"][-1]["score"]
    for one in lowest:
        assert one["estimate"] == pytest.approx(float(episodes.advantages[one["row"], 0]))
        assert one["monte_carlo"] == pytest.approx(float(true[one["row"]]))
    wrong = sum(one["estimate"] * one["monte_carlo"] < 0 for one in lowest)
    assert numbers["lowest"]["wrong"] == wrong
    assert (numbers["baseline"], len(lowest)) == ("critic", 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--iteration", "7"], "iteration: 7 was not kept; "),
        (["--records", "33", "--baseline", "critic"], "records: 33 at each end of 64 records; expected at most 32"),
        (["--records", "0"], "records: 0 is out of range; expected an integer >= 1"),
        (["--target", "run"], "target: run, and nothing scored the records of iteration 2; use return, or auto"),
        (["--target", "reward"], "AverageReward needs the reward of an episode, and the rows are transitions"),
        (["--seed", "-1"], "seed: -1 is out of range"),
    ],
)
def test_a_mistake_gets_one_line(lake: Path, capsys: Any, words: list[str], said: str) -> None:
    capsys.readouterr()
    assert main(["diagnose", str(lake), *words]) == 2
    (line,) = (line for line in [" ".join(capsys.readouterr().err.split())] if line)
    assert said in line
    assert "Traceback" not in line


def test_the_folder_of_the_run_is_no_place_for_a_page(lake: Path, capsys: Any) -> None:
    assert main(["diagnose", str(lake), "--output", str(lake)]) == 2
    assert "is the folder of a run" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def texts(experiment: dict[str, Any], tmp_path: Path) -> Path:
    """A run of a language model that kept one iteration, whose responses were then changed to hostile ones."""
    experiment["loop"]["max_iterations"] = 1
    keeper = {"class_path": "ippo_lightning.callbacks.EpisodeLog", "init_args": {"keep_buffers": True}}
    experiment["callbacks"] = [keeper]
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    run = Path(experiment["loop"]["run_dir"])
    path = buffer_path(run, iteration=0, rank=0)
    content = torch.load(path, weights_only=True)
    fields = content["episodes"]["fields"]
    # Scripts, styles, and what controls a terminal.
    fields["responses"] = list(islice(hostile_texts(), 8, 8 + len(fields["responses"])))
    torch.save(content, path)
    return run


def test_responses_are_shown_with_their_labels_and_do_nothing(texts: Path, capsys: Any) -> None:
    numbers, page, lines = diagnosed(texts, capsys, "--records", "6")
    assert (numbers["target"], numbers["baseline"], numbers["records"]) == ("reward", "group", 16)
    assert sum(one["every"] for one in numbers["labels"]) == pytest.approx(1)
    assert len(numbers["lowest_records"]) == 6
    assert page.count('class="foreign"') == 2 * 2 * 5
    assert "<script" not in page
    assert "\x1b" not in page + "".join(lines)


def test_a_baseline_of_environments_is_refused_for_responses(texts: Path, capsys: Any) -> None:
    assert main(["diagnose", str(texts), "--baseline", "critic"]) == 2
    assert "baseline: critic is for environments" in " ".join(capsys.readouterr().err.split())
