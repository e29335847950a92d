"""`ippo trace`: from a run that kept its buffers to a page, numbers and a few lines."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import TINY
from hostile_texts import hostile_texts
from rich.cells import cell_len
from traced_runs import ITERATIONS, STEPS, lake_run, text_run

from ippo_lightning.cli.analyses import output_of
from ippo_lightning.cli.analysis_settings import TraceSettings
from ippo_lightning.cli.main import main
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.iteration_files import buffer_path


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lake_run(tmp_path_factory.mktemp("trace"))


def traced(run: Path, capsys: Any, *words: str) -> tuple[dict[str, Any], str, list[str]]:
    """The numbers, the page and the lines of a trace."""
    capsys.readouterr()
    assert main(["trace", str(run), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines[:-1]), lines
    page = Path(lines[-1])
    numbers = json.loads((page.parent / "trace.json").read_text(encoding="utf-8"))
    assert not has_wrong_checksum(numbers)
    return numbers, page.read_text(encoding="utf-8"), lines


def test_a_behaviour_becomes_a_page(lake: Path, capsys: Any) -> None:
    numbers, page, lines = traced(lake, capsys, "--behaviour", "4:1")
    assert Path(lines[-1]) == lake / "trace" / "4_1" / "trace.html"
    assert lines[0].startswith("Scores of one iteration take ")
    assert (numbers["behaviour"], numbers["scores"]) == ("action 1 in state 4", "round")
    assert [one["iteration"] for one in numbers["iterations"]] == list(range(ITERATIONS))
    assert all(one["records"] == STEPS for one in numbers["iterations"])
    assert numbers["headline"].startswith("The probability of action 1 in state 4 rose from 0.2")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    # the curves, and the map
    assert page.count('<img src="data:image/png;base64,') == 2
    assert numbers["command"].endswith("--behaviour 4:1")
    top = numbers["iterations"][1]["top"]
    assert [one["score"] for one in top] == sorted((one["score"] for one in top), reverse=True)
    assert top[0]["relative_score"] == 1


@pytest.mark.slow
def test_two_traces_are_equal(lake: Path, capsys: Any, tmp_path: Path) -> None:
    words = ("--scores", "start", "--every", "2", "--first", "0", "--last", "2")
    pages = [traced(lake, capsys, *words, "--output", str(tmp_path / name))[0] for name in ("one", "two")]
    for one in pages:
        one.pop("command"), one.pop("sha256")
        for entry in one["iterations"]:
            entry.pop("seconds")
    assert pages[0] == pages[1]
    assert [one["iteration"] for one in pages[0]["iterations"]] == [0, 2]
    assert "No behaviour was given, so this one was chosen" in pages[0]["origin"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--behaviour", "14"], "behaviour: '14' is no file; expected OBSERVATION:ACTION"),
        (["--behaviour", "14:9"], "behaviour: action 9 does not exist; expected 0 to 3"),
        (["--behaviour", "record:7:1"], "iteration: 7 was not kept; "),
        (["--behaviour", "record:1:64"], "behaviour: row 64 of iteration 1 does not exist; expected 0 to 63"),
        (["--first", "5"], "first: no iteration from 5 to 2 was kept; the run kept 0 to 2"),
        (["--first", "2", "--last", "1"], "last: 1 is before first, 2; expected at least 2"),
        (["--every", "0"], "every: 0 is out of range; expected an integer >= 1"),
        (["--neighbours", "5"], "neighbours: 5 is out of range; expected an integer >= 20 and <= 100"),
        (["--top", "0"], "top: 0 is out of range"),
        (["--seed", "-1"], "seed: -1 is out of range"),
    ],
)
def test_a_mistake_gets_one_line(lake: Path, capsys: Any, words: list[str], said: str) -> None:
    capsys.readouterr()
    assert main(["trace", str(lake), *words]) == 2
    line = " ".join(capsys.readouterr().err.split())
    assert said in line
    assert "Traceback" not in line


def test_the_folder_of_the_run_is_no_place_for_a_page(lake: Path, capsys: Any) -> None:
    assert main(["trace", str(lake), "--output", str(lake)]) == 2
    assert "is the folder of a run" in " ".join(capsys.readouterr().err.split())


def test_hostile_responses_are_shown_and_do_nothing(tmp_path: Path, capsys: Any) -> None:
    run = text_run(tmp_path, config=dict(TINY))
    for iteration in (0, 1):
        path = buffer_path(run, iteration=iteration, rank=0)
        content = torch.load(path, weights_only=True)
        fields = content["episodes"]["fields"]
        # Scripts, styles, and what controls a terminal.
        fields["responses"] = list(islice(hostile_texts(), 8, 8 + len(fields["responses"])))
        torch.save(content, path)
    numbers, page, lines = traced(run, capsys, "--behaviour", "record:1:0")
    assert numbers["scores"] == "start"
    assert numbers["measure"] == "probability per token"
    assert "<script" not in page
    assert not any(ord(character) < 32 for line in lines for character in line)
    assert page.count('<bdi class="foreign">') >= 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "chosen"),
        ("14:2", "14_2"),
        ("record:5:17", "record_5_17"),
        ("../../a b.json", "a_b_json"),
        ("x" * 300, "x" * 40),
        ("//", "behaviour"),
    ],
)
def test_each_behaviour_has_a_folder_of_its_own(given: str | None, expected: str, tmp_path: Path) -> None:
    assert output_of("trace", TraceSettings(behaviour=given), tmp_path) == tmp_path / "trace" / expected
