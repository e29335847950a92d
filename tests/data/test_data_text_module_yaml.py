"""A YAML names a task by a short name or by its class, also a class of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from ippo_lightning.data import TextDataModule
from ippo_lightning.tasks import ArithmeticTask, GSM8KTask

OWN_TASK = """
class Untyped:
    def __init__(self, size: int = 3):
        self.size = size

    def rows(self, split):
        return [{"prompt": "a", "example": {}, "response": "b"}] * self.size

    def grade(self, prompt, response, example):
        return True


class OtherTypes:
    def rows(self, split: str) -> list[dict]:
        return []

    def grade(self, question: str, text: str, known: dict) -> bool:
        return True


class NoGrade:
    def rows(self, split):
        return []
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with tasks that know nothing of this library."""
    name = "tasks_of_a_user"
    (tmp_path / f"{name}.py").write_text(OWN_TASK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return name


def from_yaml(task: object) -> TextDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    data = {"class_path": "ippo_lightning.data.TextDataModule", "init_args": {"task": task, "batch_size": 2}}
    return parser.instantiate(parser.parse_object({"data": data})).data


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("arithmetic", ArithmeticTask),
        ("gsm8k", GSM8KTask),
        ({"class_path": "ippo_lightning.tasks.GSM8KTask", "init_args": {"path": "/data"}}, GSM8KTask),
    ],
    ids=["arithmetic", "gsm8k", "class_path"],
)
def test_a_yaml_names_a_task(task: object, expected: type) -> None:
    assert type(from_yaml(task).task) is expected


def test_a_yaml_gives_a_task_its_arguments() -> None:
    made = from_yaml({"class_path": "ippo_lightning.tasks.ArithmeticTask", "init_args": {"num_train": 7, "seed": 4}})
    made.setup()
    assert len(made.splits.prompts) == 7
    assert made.splits.prompts == ArithmeticTask(num_train=7, seed=4).rows("prompts")


@pytest.mark.parametrize("name", ["Untyped", "OtherTypes"])
def test_a_yaml_names_a_class_of_the_user_whatever_its_annotations(own_module: str, name: str) -> None:
    made = from_yaml({"class_path": f"{own_module}.{name}"})
    made.setup()
    assert type(made.task).__name__ == name


def test_the_arguments_of_a_users_class_come_from_the_yaml(own_module: str) -> None:
    made = from_yaml({"class_path": f"{own_module}.Untyped", "init_args": {"size": 5}})
    made.setup()
    assert len(made.splits.test) == 5


def test_a_class_without_grading_is_refused_by_the_parser(own_module: str) -> None:
    with pytest.raises(Exception, match=r"NoGrade does not implement protocol"):
        from_yaml({"class_path": f"{own_module}.NoGrade"})
