"""`ippo intervene RUN ...` on two tiny runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ippo_lightning.cli import intervene as command
from ippo_lightning.cli.main import main

FAST = ["--repeats", "2", "--draws", "2", "--episodes", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds that kept their buffers, and a run of another environment."""
    folder = tmp_path_factory.mktemp("intervene")
    words = ["--method", "keep_buffers", "--model.init_args.num_steps=32", "--model.init_args.update.num_epochs=1"]
    words += ["--loop.max_iterations=2", "--loop.evaluate_first=false", "--loop.evaluate_every_n_iterations=0"]
    words += ["--loop.test_at_end=false", "--loop.progress_bar=false"]
    for name, task, seed in (("seed_1", "frozenlake", 1), ("seed_2", "frozenlake", 2), ("other", "cartpole", 1)):
        given = ["--task", task, f"--seed_everything={seed}", f"--loop.run_dir={folder / name}"]
        assert main(["fit", *given, *words]) == 0
    return [str(folder / name) for name in ("seed_1", "seed_2", "other")]


def test_seeds_are_pooled_on_one_page_and_an_interrupted_command_goes_on(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["intervene", *runs[:2], *FAST, f"--output={tmp_path / 'page'}"]
    intervene, calls = command.intervene, []

    def interrupted(*args: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return intervene(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "intervene", interrupted)
    assert main(words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert main(words) == 0
    assert len(calls) == 5  # two, the interrupted one, and the two that were missing
    printed = capsys.readouterr()
    assert "seed_2, iteration 1: without negatives" in printed.err
    assert printed.out.rstrip().endswith("intervention.html")
    assert all(len(line) <= 80 for line in printed.out.splitlines() if "Page:" not in line)
    first = (tmp_path / "page" / "intervention.json").read_bytes()
    numbers = json.loads(first)
    assert [(one["run"], one["iteration"]) for one in numbers["iterations"]] == [
        ("seed_1", 0), ("seed_1", 1), ("seed_2", 0), ("seed_2", 1),
    ]  # fmt: skip
    assert main(words) == 0
    assert len(calls) == 5
    assert (tmp_path / "page" / "intervention.json").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["RUN", "--iteration", "9"], "iteration: 9 was not kept"),
        (["RUN", "--repeats", "1"], "repeats: 1 is out of range"),
        (["RUN", "--every", "2", "--iteration", "0"], "every: 2 needs all iterations"),
        (["RUN", "--episodes", "1"], "episodes: 1 is out of range"),
        (["RUN", "OTHER"], "differ in data; expected seeds of one configuration"),
        (["RUN", "RUN"], "is given twice"),
        (["RUN", "--output", "RUN"], "is the folder of a run"),
        ([], "intervene: no run is given"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    words: list[str],
    expected: str,
    runs: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "repeated_rounds", None)
    names = {"RUN": runs[0], "OTHER": runs[2]}
    assert main(["intervene", *(names.get(word, word) for word in words)]) == 2
    assert expected in capsys.readouterr().err


def test_pages_of_other_iterations_stay_and_link_each_other(runs: list[str], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "seed_1"))
    for words in (["--iteration", "0"], ["--iteration", "1"], ["--every", "2"]):
        assert main(["intervene", str(run), *FAST, *words]) == 0
    found = {path.parent.name: path for path in (run / "intervention").glob("*/intervention.html")}
    assert sorted(found) == ["every_2", "iteration_0000000", "iteration_0000001"]
    assert 'href="../iteration_0000001/intervention.html"' in found["iteration_0000000"].read_text(encoding="utf-8")
    # iteration 0 was trained once, for both pages that need it
    (done,) = (run / "intervention").glob("rounds-*.jsonl")
    assert len(done.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("name", ["diagnose", "trace", "intervene"])
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_trained(
    name: str, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    # a file in the way is refused for root as well
    assert main([name, runs[0], "--output", str(tmp_path / "file" / "page")]) == 2
    line = " ".join(capsys.readouterr().err.split())
    assert "cannot be written into" in line
    assert "Traceback" not in line
