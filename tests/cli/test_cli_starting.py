"""`ippo init` writes files that run as they are, for an example of its own and for experiments by axes."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo_lightning.cli.main import EXIT_USER_ERROR, main
from ippo_lightning.cli.starting import DATA, EXPERIMENT, REWARD, SFT, example_rows
from ippo_lightning.tasks import grade_arithmetic

SHORT = [
    "--loop.max_iterations=1",
    "--loop.evaluate_first=false",
    "--data.init_args.batch_size=4",
    "--data.init_args.task.init_args.num_test=4",
    "--data.init_args.task.init_args.num_influence_demonstrations=4",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project; the working folder is inside."""
    folder = tmp_path / "my project"
    assert main(["init", str(folder)]) == 0
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    monkeypatch.delitem(__import__("sys").modules, "my_reward", raising=False)
    return folder


@pytest.mark.parametrize(("name", "run"), [(EXPERIMENT, "ippo"), (SFT, "sft")])
def test_the_files_run_as_they_are(name: str, run: str, project: Path) -> None:
    assert main(["fit", "--config", name, *SHORT]) == 0
    results = json.loads((project / "runs" / run / "results.json").read_text(encoding="utf-8"))
    assert results["num_prompts"] == 4
    if run == "ippo":
        assert results["chosen"]["model.reward"] == "my_reward.right_by_right_steps"
        assert (project / "runs" / run / "episodes.jsonl").is_file()


@pytest.mark.slow
def test_sft_leads_to_ppo_and_to_ippo_and_both_to_a_report(project: Path) -> None:
    assert main(["fit", "--config", SFT]) == 0
    start = ["--model.init_args.policy.init_args.pretrained=runs/sft/model", "--loop.max_iterations=12"]
    assert main(["fit", "--config", EXPERIMENT, *start, "--callbacks", "[]", "--loop.run_dir", "runs/ppo"]) == 0
    assert main(["fit", "--config", EXPERIMENT, *start]) == 0
    assert main(["report", "runs/ppo", "runs/ippo", "--output", "runs/report"]) == 0
    for run in ("ppo", "ippo"):
        results = json.loads((project / "runs" / run / "results.json").read_text(encoding="utf-8"))
        assert results["exact_match"] > 0.7  # what the packaged model knows is not lost
    assert (project / "runs" / "report" / "report.html").is_file()


def test_the_data_are_right_and_their_columns_are_those_that_the_yaml_names(project: Path) -> None:
    rows = [json.loads(line) for line in (project / DATA).read_text(encoding="utf-8").splitlines()]
    assert rows == example_rows()
    assert all(grade_arithmetic(row["problem"], row["worked"], {"problem": row["problem"]}).correct for row in rows)
    assert all(row["result"] == sum(map(int, re.findall(r"[+-]?\d+", row["problem"]))) for row in rows)
    for name in (EXPERIMENT, SFT):
        columns = yaml.safe_load((project / name).read_text())["data"]["init_args"]["task"]["init_args"]["train"][
            "columns"
        ]
        named = [*columns.pop("keep", []), *columns.values()]
        assert set(named) <= rows[0].keys()


def test_nothing_is_replaced_and_nothing_is_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / REWARD).write_text("mine", encoding="utf-8")
    assert main(["init", str(tmp_path)]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert f"{tmp_path / REWARD} exists, and is not replaced" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [REWARD]
    assert (tmp_path / REWARD).read_text(encoding="utf-8") == "mine"


def test_a_link_is_not_followed_and_an_error_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DATA).symlink_to(tmp_path / "nowhere")
    assert main(["init", str(tmp_path)]) == EXIT_USER_ERROR
    assert "exists, and is not replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [DATA]
    (tmp_path / DATA).unlink()
    real = Path.open

    def full(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == DATA:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    assert main(["init", str(tmp_path)]) == EXIT_USER_ERROR
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    assert main(["init", str(tmp_path / "taken")]) == EXIT_USER_ERROR
    assert "taken cannot be written" in capsys.readouterr().err


def printed_configuration(words: list[str], capsys: pytest.CaptureFixture[str]) -> object:
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main(["fit", *words, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "axes",
    [
        ["--task", "arithmetic", "--model", "lora", "--method", "ippo"],
        ["--base", "sft", "--task", "gsm8k"],
        ["--method", "fast", "--task", "own_data"],
        ["--model", "nf4"],
        ["--task", "cartpole"],
    ],
    ids=["full", "sft", "other order", "one axis", "another base"],
)
def test_axes_are_written_out_as_the_same_experiment(
    axes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "new", *axes]) == 0
    assert [path.name for path in Path("new").iterdir()] == [EXPERIMENT]
    expected = printed_configuration(axes if "--task" in axes else ["--base", "ppo", *axes], capsys)
    assert printed_configuration(["--config", f"new/{EXPERIMENT}"], capsys) == expected
    assert "What all" in Path("new", EXPERIMENT).read_text(encoding="utf-8")  # the comments of the files are kept


def test_without_a_folder_the_line_shows_how_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == EXIT_USER_ERROR
    assert "expected ippo init FOLDER" in capsys.readouterr().err


def test_an_unknown_name_of_an_axis_gets_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "new"), "--task", "gsmk8"]) == EXIT_USER_ERROR
    assert "did you mean 'gsm8k'?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
