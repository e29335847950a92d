"""Every combination of base, task, model, overlay and method is a run, through the parser of the command line.

A method adds callbacks, which nothing else does, or is an algorithm, whose parts nothing else sets. So it is enough
that each base, task, model and overlay are parsed together once, each time with another method.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import CONTROL_MODELS, CONTROL_TASKS, REWARD_TASKS
from jsonargparse import ArgumentParser

from ippo_lightning.cli.axis_values import is_overlay
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.experiment_paths import axis_names
from ippo_lightning.cli.parsers import experiment_parser
from ippo_lightning.cli.quick_check import check_command

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
TASKS = [name for name in axis_names("task") if name not in (*CONTROL_TASKS, *REWARD_TASKS)]
METHODS = axis_names("method")
FILTERS = [name for name in METHODS if "callbacks+" in (EXPERIMENTS / "methods" / f"{name}.yaml").read_text()]
WHOLE = [
    name
    for name in axis_names("model")
    if name not in CONTROL_MODELS and not is_overlay(EXPERIMENTS / "models" / f"{name}.yaml")
]
OVERLAYS = ["", "lora", "nf4", "lora+bf16", "nf4+bf16"]
MODELS = ["", *WHOLE]
RUNS = list(itertools.product(("sft", "ppo"), TASKS, MODELS, OVERLAYS))


def a_sample() -> list[tuple[str, str, str, str]]:
    """Each task, model and overlay at least once."""
    several = max(len(TASKS), len(MODELS), len(OVERLAYS))
    columns = (("sft", "ppo", "ppo"), TASKS, MODELS, OVERLAYS)
    return [tuple(column[n % len(column)] for column in columns) for n in range(several)]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return experiment_parser()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def settings_of(parser: ArgumentParser, base: str, task: str, model: str, method: str | None = None) -> dict[str, Any]:
    axes = {"base": base, "task": task, "model": model, "method": method}
    line = read_command_line(["fit", *(word for axis, name in axes.items() if name for word in (f"--{axis}", name))])
    check_command(line)
    return parser.parse_args(line.words[1:]).as_dict()


def check(parser: ArgumentParser, base: str, task: str, whole: str, overlay: str, method: str) -> None:
    model = "+".join(name for name in (whole, overlay) if name)
    settings = settings_of(parser, base, task, model, method if base == "ppo" else None)
    place = f"runs/{task}/{model}" if model else f"runs/{task}"
    assert settings["loop"]["run_dir"] == f"{place}/{method if base == 'ppo' else base}"
    policy = settings["model"]["init_args"]["policy"]["init_args"]
    assert (policy["pretrained"] is None) != (policy["config"] is None), "one start, not two"
    named = read(EXPERIMENTS / "models" / f"{whole}.yaml")["model"]["init_args"] if whole else {}
    own = named.get("policy", {}).get("init_args", {})
    rate = settings["model"]["init_args"]["optimizer"]["learning_rate"]
    assert rate == (1e-4 if overlay else named.get("optimizer", {}).get("learning_rate", rate))
    assert policy["pretrained"] == own.get("pretrained", policy["pretrained"])
    if own.get("start_from"):
        assert policy["start_from"] == (f"{place}/sft" if base == "ppo" else None)
        assert (policy["lora"] is not None) == bool(overlay or own.get("lora"))
    if overlay:
        assert policy["lora"]["r"] == 8
        assert policy["quantization"] == ("nf4" if "nf4" in overlay else None)
        assert policy["dtype"] == ("bfloat16" if "bf16" in overlay else "float32")
    callbacks = [item["class_path"].rpartition(".")[2] for item in settings["callbacks"] or []]
    assert callbacks == (["EpisodeLog", *added_callbacks(method)] if base == "ppo" else [])


def added_callbacks(method: str) -> list[str]:
    added = read(EXPERIMENTS / "methods" / f"{method}.yaml").get("callbacks+", [])
    return [item["class_path"] for item in added]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def with_methods(runs: list[Any]) -> Iterator[Any]:
    return zip(runs, itertools.cycle(METHODS))


def test_only_a_base_and_a_method_set_callbacks() -> None:
    for axis in ("tasks", "models"):
        for path in (EXPERIMENTS / axis).rglob("*.yaml"):
            assert not {"callbacks", "callbacks+"} & set(read(path))
    for name in METHODS:
        assert set(read(EXPERIMENTS / "methods" / f"{name}.yaml")) <= ({"callbacks+"} if name in FILTERS else {"model"})


@pytest.mark.slow
def test_a_sample_of_the_combinations_resolves(parser: ArgumentParser) -> None:
    for run, method in with_methods(a_sample()):
        check(parser, *run, method)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_combination_resolves(parser: ArgumentParser, task: str) -> None:
    for run, method in with_methods([run for run in RUNS if run[1] == task]):
        check(parser, *run, method)


@pytest.mark.parametrize("task", ["arithmetic", "word_problems"])
@pytest.mark.parametrize("model", ["gemma-2-2b", "phi-3-mini"])
def test_nothing_of_the_model_of_a_task_remains(parser: ArgumentParser, task: str, model: str) -> None:
    """Neither the adapter of the package nor the tokenizer of a new model."""
    for base in ("sft", "ppo"):
        policies = [
            settings_of(parser, base, chosen, model)["model"]["init_args"]["policy"]["init_args"]
            for chosen in ("own_data", task)
        ]
        for policy in policies:
            del policy["start_from"]
        assert policies[0] == policies[1]


@pytest.mark.parametrize(
    "words", [["nf4", "gemma-2-2b"], ["gemma-2-2b", "nf4"], ["gemma-2-2b+nf4"], ["nf4+gemma-2-2b"]]
)
def test_the_order_of_models_and_overlays_changes_nothing(words: list[str]) -> None:
    line = read_command_line(["fit", "--task", "math", *(part for word in words for part in ("--model", word))])
    assert [path.stem for path in line.files[2:]] == ["gemma-2-2b", "nf4"]
    assert line.layers[-1] == {"loop.run_dir": "runs/math/gemma-2-2b+nf4/ppo"}


@pytest.mark.parametrize("words", [["nf4+bf16"], ["bf16+nf4"], ["bf16", "nf4"], ["bf16", "gemma-2-2b", "nf4"]])
def test_overlays_in_any_order_are_one_run(words: list[str]) -> None:
    words = words if "gemma-2-2b" in words else ["gemma-2-2b", *words]
    line = read_command_line(["fit", "--task", "math", *(part for word in words for part in ("--model", word))])
    assert [path.stem for path in line.files[2:]] == ["gemma-2-2b", "nf4", "bf16"]
    assert line.layers[-1] == {"loop.run_dir": "runs/math/gemma-2-2b+nf4+bf16/ppo"}
    [start] = [layer for layer in line.layers if "start_from" in str(layer) and "runs/" in str(layer)]
    assert "runs/math/gemma-2-2b+nf4+bf16/sft" in str(start)
