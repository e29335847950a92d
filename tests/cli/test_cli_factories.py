"""What no YAML runs, the user's own among them: functions that no field expects, and Python's own library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from code_traps import POLICY, SHELL, one_line
from experiment_files import change, write

PLACES = {
    "model": "model",
    "data": "data",
    "task": "data.init_args.task",
    "callback": "callbacks.0",
    "policy": "model.init_args.policy",
    "tokenizer": f"{POLICY}.tokenizer",
    "settings": "model.init_args.sampling",
    "loss": "model.init_args.loss",
    "reward": "model.init_args.reward",
    "grader": "model.init_args.grader",
    "rule of the filter": "callbacks.0.init_args.rule",
    "target of the filter": "callbacks.0.init_args.target",
    "demonstrations of the filter": "callbacks.0.init_args.demonstrations",
    "settings of an engine": "model.init_args.sampling.engine.x",
    "config of a model": f"{POLICY}.config.x",
    "extra arguments": "data.dict_kwargs.x",
    "logger": "fabric.loggers",
    "strategy": "fabric.strategy",
    "plugin": "fabric.plugins",
    "a plain number": "loop.max_iterations",
}
"""Every kind of field that a YAML has: classes, protocols, functions, settings, any value, plain values."""


def placed(experiment: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return the experiment with a value where the place expects one: some expect a list."""
    if place == f"{POLICY}.config.x":
        change(experiment, f"{POLICY}.pretrained", None)
        change(experiment, f"{POLICY}.config", {"model_type": "llama"})
    is_list = place in ("callbacks.0.init_args.demonstrations", "fabric.plugins")
    change(experiment, place, [value] if is_list else value)
    return experiment


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("place", PLACES)
def test_a_class_path_never_calls_a_function_of_python(
    place: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(["fit", "--config", write(placed(experiment, PLACES[place], SHELL), tmp_path)], capsys)


SPELT: dict[str, Any] = {
    "a class of Python": {"class_path": "subprocess.Popen", "init_args": {"args": "touch HIT", "shell": True}},
    "a module of Python through this library": {
        "class_path": "ippo_lightning.cli.jobs.subprocess.Popen",
        "init_args": {"args": "touch HIT", "shell": True},
    },
    "a function of Python through another module": {
        "class_path": "shell_for_tests.alias.system",
        "init_args": {"command": "touch HIT"},
    },
    "a function of Python by another name": {
        "class_path": "shell_for_tests.shell",
        "init_args": {"command": "touch HIT"},
    },
    "a function that promises nothing": {
        "class_path": "shell_for_tests.untyped",
        "init_args": {"command": "touch HIT"},
    },
    "a function that promises a number": {
        "class_path": "shell_for_tests.number",
        "init_args": {"command": "touch HIT"},
    },
    "a text that is YAML": json.dumps(SHELL),
    "a text of Python": "os.system",
    "a partial of Python's": "shell_for_tests.partial",
    "a module that is imported for its effect": "antigravity.webbrowser",
    "inside the arguments of a factory": {
        "class_path": "ippo_lightning.rewards.grade_reward",
        "init_args": {"grader": SHELL},
    },
}
SHELLS = """
import functools
import os as alias
shell = alias.system
partial = functools.partial(alias.system, "touch HIT")

def untyped(command: str):
    alias.system(command)
    return lambda prompts, responses, examples: [0.0] * len(prompts)

def number(command: str) -> int:
    return alias.system(command)
"""


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("field", ["reward", "grader"])
@pytest.mark.parametrize("name", SPELT)
def test_no_spelling_of_a_shell_is_a_reward(
    name: str, field: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shell_for_tests.py").write_text(SHELLS, encoding="utf-8")
    sys.modules.pop("shell_for_tests", None)
    change(experiment, f"model.init_args.{field}", SPELT[name])
    assert field in one_line(["fit", "--config", write(experiment, tmp_path)], capsys)


@pytest.mark.usefixtures("nothing_runs")
def test_a_value_read_from_a_file_never_calls_a_function_of_python(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").write_text(yaml.safe_dump(SHELL), encoding="utf-8")
    change(experiment, "model", "model")
    assert "os.system" in one_line(["fit", "--config", write(experiment, tmp_path)], capsys)
