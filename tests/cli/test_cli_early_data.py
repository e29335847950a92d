"""What is wrong with a user's questions shows before the model is loaded, and reading them first changes no result."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from experiment_files import change, write
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from ippo_lightning.cli import early_data
from ippo_lightning.cli.main import EXIT_USER_ERROR, main
from ippo_lightning.data import TextDataModule

SIZES = {"num_test": 8, "num_validation": 8, "num_influence_demonstrations": 0}


@pytest.fixture
def questions(experiment: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The experiment, on a hundred questions of a file."""
    rows = [{"q": f"{n}+1=", "a": n + 1} for n in range(100)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = {"path": str(tmp_path / "questions.jsonl"), "columns": {"prompt": "q", "answer": "a"}}
    task = {"class_path": "ippo_lightning.tasks.QuestionTask", "init_args": {"train": train}}
    train["answer_kind"] = "number"
    change(experiment, "data.init_args.task", task)
    experiment["callbacks"] = []
    change(experiment, "model.init_args.grader", None)  # the task's, which reads any number
    return experiment


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "num_test",
            None,
            "num_test: 128, num_validation: 128, num_influence_demonstrations: 64 hold out 320",
        ),
        ("train.path", "no_such.jsonl", "'no_such.jsonl' does not exist"),
        ("train.columns.prompt", "question", "there is no column 'question'; expected one of q, a; no row fits"),
    ],
    ids=["too few rows", "no file", "no column"],
)
def test_a_mistake_in_the_data_comes_before_the_model(
    key: str, value: Any, said: str, questions: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(questions, f"data.init_args.task.init_args.{key}", value)
    change(questions, "model.init_args.policy.init_args.pretrained", "./no_such_model")
    assert main(["fit", "--config", write(questions, tmp_path)]) == EXIT_USER_ERROR
    line = capsys.readouterr().err
    assert said in line
    assert "no_such_model" not in line


def test_reading_the_questions_first_changes_no_weight(
    questions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions["data"]["init_args"]["task"]["init_args"].update(SIZES)
    questions["loop"] |= {"max_iterations": 1, "test_at_end": False, "progress_bar": True}
    config = write(questions, tmp_path)
    values = []
    for name in ("early", "late"):
        assert main(["fit", "--config", config, "--loop.run_dir", str(tmp_path / name)]) == 0
        # without a terminal, one line per iteration and evaluation
        words = [line.partition(" ")[0] for line in capsys.readouterr().err.splitlines()]
        assert words == ["evaluation", "iteration"]
        values.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["parameters"])
        monkeypatch.setattr(early_data, "early_data", lambda _: None)
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


def parsed(data: dict[str, Any]) -> Any:
    """The section `data` as the command line parses it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.parse_object({"data": data}).data


def test_what_reading_the_questions_first_draws_is_not_taken_from_the_model(
    questions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(data: TextDataModule, stage: str | None = None) -> None:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        own_setup(data, stage)

    drawn: list[tuple[float, ...]] = []
    own_setup = TextDataModule.setup
    monkeypatch.setattr(TextDataModule, "setup", drawing)
    questions["data"]["init_args"]["task"]["init_args"].update(SIZES)
    data = early_data.early_data(parsed(questions["data"]))
    data.setup()
    assert len(data.splits.validation) == SIZES["num_validation"]
    assert drawn[0] == drawn[1]


def test_questions_that_have_to_be_downloaded_are_not_read_first(
    questions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(TextDataModule, "setup", lambda *_: read.append("data"))
    train = questions["data"]["init_args"]["task"]["init_args"]["train"]
    assert early_data.early_data(parsed(questions["data"])) is not None
    train["path"] = "somebody/no_such_questions"
    assert early_data.early_data(parsed(questions["data"])) is None
    assert read == ["data"]


def test_the_printed_configuration_states_how_many_questions_are_held_out(
    questions: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(questions, tmp_path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["task"]["init_args"]
    assert printed["num_test"] == 128
    questions["data"]["init_args"]["task"]["init_args"]["test"] = printed["train"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(questions, tmp_path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["task"]["init_args"]
    assert printed["num_test"] is None  # all of them, and how many that is only the file tells
