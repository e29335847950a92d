"""The table of what may execute (docs/guides/trust.md), a test for each row."""

from __future__ import annotations

import copy
import io
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from code_traps import POLICY, SHELL, one_line
from experiment_files import change, write

from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.main import main
from ippo_lightning.cli.trust import check_trust, outside_names
from ippo_lightning.errors import UserError
from ippo_lightning.storage.own_runs import is_own_run, remember_run


def stranger(experiment: dict[str, Any], folder: Path, *changes: tuple[str, Any]) -> Path:
    """Return a run's folder from elsewhere: it has a configuration, a history, and nothing that fits this machine."""
    experiment = copy.deepcopy(experiment)
    change(experiment, "model.init_args.reward", None)
    for key, value in changes:
        for place, content in ({key: value} if key else value).items():
            change(experiment, place, content)
    run = folder / "stranger"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    row = {"iteration": 0, "update/kept_fraction": 0.5, "time/iteration_seconds": 1.0}
    (run / "history.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()  # what may run is decided before it is read
    return run


# --- what an own YAML runs --------------------------------------------------------------------------------------

OWN = """
from ippo_lightning.modules import PPOModule
from ippo_lightning.tasks import ArithmeticTask

class Module(PPOModule):
    pass

class ByLength:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, prompts, responses, examples):
        return [self.scale * len(response) for response in responses]

def by_length(prompts, responses, examples):
    return [float(len(response)) for response in responses]

def made(scale: float = 1.0) -> ByLength:
    return ByLength(scale)

def small_task(num_train: int = 16) -> ArithmeticTask:
    return ArithmeticTask(num_train=num_train, num_validation=2, num_test=2, num_influence_demonstrations=2)

instance = ByLength(2.0)
"""


@pytest.fixture
def own(experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment whose module and reward lie in the working folder, with one iteration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_for_tests", raising=False)
    (tmp_path / "own_for_tests.py").write_text(OWN, encoding="utf-8")
    change(experiment, "model.class_path", "own_for_tests.Module")
    change(experiment, "model.init_args.reward", "own_for_tests.by_length")
    change(experiment, "loop.max_iterations", 1)
    change(experiment, "callbacks", None)
    return experiment


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.init_args.reward", "own_for_tests.instance"),
        ("model.init_args.reward", {"class_path": "own_for_tests.ByLength", "init_args": {"scale": 2.0}}),
        ("model.init_args.reward", {"class_path": "own_for_tests.made", "init_args": {"scale": 2.0}}),
        ("data.init_args.task", {"class_path": "own_for_tests.small_task", "init_args": {"num_train": 16}}),
    ],
    ids=["an object", "a class", "a factory of rewards", "a factory of tasks"],
)
def test_an_own_yaml_runs_what_it_names(key: str, value: Any, own: dict[str, Any], tmp_path: Path) -> None:
    change(own, key, value)
    assert main(["fit", "--config", write(own, tmp_path)]) == 0


@pytest.mark.slow
def test_an_own_run_needs_no_word(own: dict[str, Any], tmp_path: Path) -> None:
    assert main(["fit", "--config", write(own, tmp_path)]) == 0
    run = str(shutil.move(tmp_path / "run", tmp_path / "moved"))
    assert main(["evaluate", "--config", f"{run}/config.yaml", "--checkpoint", f"{run}/checkpoints/last.ckpt"]) == 0
    assert main(["export", run]) == 0
    assert main(["evaluate", run, "--samples", "1"]) == 0
    assert main(["fit", "--resume", run, "--loop.max_iterations", "2"]) == 0
    assert main(["export", run, "--output", str(tmp_path / "again")]) == 0


def test_the_run_of_another_user_needs_the_word(
    own: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", "--config", write(own, tmp_path)]) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = str(tmp_path / "run")
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    of_config = ["evaluate", "--config", f"{run}/config.yaml"]
    for words in (["export", run], ["fit", "--resume", run], of_config, ["evaluate", run, "--samples", "1"]):
        line = one_line(words, capsys)
        assert "own_for_tests.Module, own_for_tests.by_length" in line
        assert line.endswith(f"ippo {shlex.join(words)} --trust")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
    assert main(["export", run, "--trust"]) == 0
    assert main(["fit", "--trust", "--resume", run, "--loop.max_iterations", "2"]) == 0
    # what `fit` has run with the user's word is the user's own from there on
    assert main(["export", run, "--output", str(tmp_path / "again")]) == 0


def test_a_changed_configuration_is_not_an_own_one(
    own: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write(own, tmp_path)]) == 0
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("own_for_tests.by_length", "own_for_tests.instance"))
    assert "own_for_tests.instance" in one_line(["export", str(tmp_path / "run")], capsys)


# --- what a stranger's folder runs ------------------------------------------------------------------------------

NAMED: dict[str, tuple[str, Any]] = {
    "a reward": ("model.init_args.reward", "trap.reward"),
    "a reward by class_path": ("model.init_args.reward", {"class_path": "trap.Anything"}),
    "a reward as text of YAML": ("model.init_args.reward", "{class_path: trap.Anything}"),
    "a grader": ("model.init_args.grader", "trap.reward"),
    "a module": ("model.class_path", "trap.Anything"),
    "a module as a bare text": ("model", "trap.Anything"),
    "a data module": ("data.class_path", "trap.Anything"),
    "a task": ("data.init_args.task", {"class_path": "trap.Anything"}),
    "a tokenizer": (f"{POLICY}.tokenizer", {"class_path": "trap.Anything"}),
    "a callback": ("callbacks.0", {"class_path": "trap.Anything"}),
    "a rule of a callback": ("callbacks.0.init_args", {"rule": {"class_path": "trap.Anything"}}),
    "a value of any type": ("callbacks.0.init_args", {"demonstrations": [{"x": [{"class_path": "trap.Anything"}]}]}),
    "extra arguments": ("data.dict_kwargs", {"x": {"class_path": "trap.Anything"}}),
    "a logger": ("fabric.loggers", {"class_path": "trap.Anything"}),
    "a strategy": ("fabric.strategy", {"class_path": "trap.Anything"}),
    "another package": ("data.init_args.task", {"class_path": "transformers.pipeline"}),
    "a shell": ("model.init_args.reward", SHELL),
    "a shell through this library": (
        "model.init_args.reward",
        {"class_path": "ippo_lightning.cli.jobs.subprocess.Popen", "init_args": {"args": "touch HIT", "shell": True}},
    ),
    "a private function of this library": ("model.init_args.grader", "ippo_lightning.storage.atomic.write_text_whole"),
    "a function of Lightning": ("model.init_args.grader", "lightning.fabric.utilities.cloud_io._load"),
    "a kernel for attention": (f"{POLICY}.attn_implementation", "evil/kernel"),
    "a reward, with trust in the file": ("", {"trust": True, "model.init_args.reward": "trap.reward"}),
    "a dotted key": ("model.init_args", {"policy.init_args.tokenizer.class_path": "trap.Anything", "grader": None}),
    "a file as the model": ("model", "named"),
    "a file as the data": ("data", "named"),
    "a file as the task": ("data.init_args.task", "named"),
    "a file as the loop": ("loop", "named"),
    "a file as fabric": ("fabric", "named"),
    "a file as the configuration": ("config", "named"),
    "code that comes with the model": (f"{POLICY}.trust_remote_code", True),
    "code that comes with the model, for an engine": ("model.init_args.sampling.engine", {"trust_remote_code": True}),
}


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("command", ["export", "evaluate", "evaluate RUN", "fit"])
@pytest.mark.parametrize("name", NAMED)
def test_a_strangers_folder_runs_nothing(
    name: str, command: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "named").write_text("{class_path: trap.Anything, loggers: {class_path: trap.Anything}}")
    run = str(stranger(experiment, tmp_path, NAMED[name]))
    words = {"export": [run], "evaluate": ["--config", f"{run}/config.yaml"], "fit": ["--resume", run]}
    words["evaluate RUN"] = [run, "--samples", "1"]
    line = one_line([command.split()[0], *words[command]], capsys)
    assert len(line) < 500


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", ["a reward", "a callback", "code that comes with the model"])
def test_a_comparison_runs_nothing_of_a_strangers_folder(
    name: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stranger(experiment, tmp_path, NAMED[name])
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"methods": {"a": {"config": [str(run / "config.yaml")]}}}))
    assert "trust" in one_line(["compare", "--config", str(tmp_path / "grid.yaml")], capsys)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if number % 4 else ()) for number, name in enumerate(NAMED)]
)
def test_a_report_of_a_strangers_folder_runs_nothing(name: str, experiment: dict[str, Any], tmp_path: Path) -> None:
    run = stranger(experiment, tmp_path, NAMED[name])
    before = list(sys.path)
    assert main(["report", str(run)]) == 0
    assert sys.path == before, "a module of the working folder could stand in for one that is not installed"


def test_a_strangers_folder_that_names_this_library_alone_needs_no_word(
    experiment: dict[str, Any], tmp_path: Path
) -> None:
    run = stranger(experiment, tmp_path, ("loop.max_iterations", 1), ("fabric.loggers", {"class_path": "CSVLogger"}))
    line = read_command_line(["fit", "--resume", str(run)])
    assert not list(outside_names(line.run_configs[0].content))
    assert not check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=["fit"])


def test_what_the_user_names_beside_the_folder_needs_no_word(experiment: dict[str, Any], tmp_path: Path) -> None:
    run = stranger(experiment, tmp_path)
    line = read_command_line(["fit", "--resume", str(run), "--model.init_args.reward", "rewards_for_tests.right"])
    assert not check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=["fit"])


@pytest.mark.parametrize("words", [["--trust_remote_code"], [f"--{POLICY}.trust_remote_code", "true"]])
def test_code_that_comes_with_a_model_counts_if_the_user_repeats_it(
    words: list[str], experiment: dict[str, Any], tmp_path: Path
) -> None:
    run = stranger(experiment, tmp_path, (f"{POLICY}.trust_remote_code", True))
    for given, is_allowed in ((["fit", "--resume", str(run)], False), (["fit", "--resume", str(run), *words], True)):
        line = read_command_line(given)
        remember_run(line.run_configs[0].text)  # also of an own run
        if is_allowed:
            assert check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=given)
            continue
        with pytest.raises(UserError, match="--trust_remote_code"):
            check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=given)


class Terminal(io.StringIO):
    """A user who types one answer."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "is_yes"), [("y\n", True), ("yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_user_at_a_terminal_is_asked(
    answer: str, is_yes: bool, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stranger(experiment, tmp_path, ("model.init_args.reward", "rewards_for_tests.right"))
    line = read_command_line(["fit", "--resume", str(run)])
    asked = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", asked)
    if is_yes:
        assert check_trust(line.run_configs, trust=line.trust, own_layers=[], given=["fit"])
    else:
        with pytest.raises(UserError, match="rewards_for_tests"):
            check_trust(line.run_configs, trust=line.trust, own_layers=[], given=["fit"])
    assert "rewards_for_tests.right" in asked.getvalue()
    assert is_own_run(line.run_configs[0].text) == is_yes
