"""The experiments in environments: their axes combine with each other, and not with those of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment_files import CONTROL_MODELS, CONTROL_TASKS, parsed
from jsonargparse import ArgumentError, ArgumentParser

from ippo_lightning.cli.columns import columns_of
from ippo_lightning.cli.parsers import experiment_parser
from ippo_lightning.cli.settings import CompareSettings
from ippo_lightning.errors import UserError

FILTERS = ("iif", "random_drop", "advantage_heuristic", "td_priority")


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return experiment_parser()


@pytest.mark.parametrize("task", CONTROL_TASKS)
@pytest.mark.parametrize("method", ["", "ppo", *FILTERS])
def test_a_task_in_an_environment_takes_the_base_of_its_module(parser: ArgumentParser, task: str, method: str) -> None:
    settings = parsed(parser, ["--task", task, *(["--method", method] if method else [])])
    assert settings["model"]["class_path"].endswith(".ControlPPOModule")
    assert settings["data"]["class_path"].endswith(".ControlDataModule")
    assert settings["loop"]["run_dir"] == f"runs/{task}/{method or 'ppo'}"
    given = settings["model"]["init_args"]
    assert (given["update"]["num_epochs"], given["update"]["minibatch_size"]) == (10, 64)
    assert given["update"]["max_grad_norm"] == 0.5
    kind = "adamw" if task in ("bipedalwalker", "cartpole") else "sgd"
    assert (given["optimizer"]["kind"], given["num_steps"]) == (kind, 2048)
    callbacks = [callback["class_path"].rpartition(".")[2] for callback in settings["callbacks"]]
    assert callbacks == ["EpisodeFrames", *(["InfluenceFilter"] if method in FILTERS else [])]


@pytest.mark.parametrize("model", CONTROL_MODELS)
def test_a_network_changes_the_policy_of_an_environment_and_nothing_else(parser: ArgumentParser, model: str) -> None:
    plain, changed = (parsed(parser, ["--task", "minigrid", *words]) for words in ([], ["--model", model]))
    assert changed["loop"].pop("run_dir") == f"runs/minigrid/{model}/ppo"
    del plain["loop"]["run_dir"], plain["config"], changed["config"]
    policies = [settings["model"]["init_args"].pop("policy") for settings in (plain, changed)]
    assert plain == changed
    assert (policies[0] == policies[1]) == (model == "minigrid_cnn")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "cartpole", "--model", "smollm2-135m"], "'pretrained' is not accepted (in MLP)"),
        (["--task", "cartpole", "--model", "lora"], "'lora' is not accepted (in MLP)"),
        (["--task", "arithmetic", "--model", "mlp"], "MLP"),
        (["--base", "control", "--task", "arithmetic"], "not accepted (in MLP)"),
        (["--base", "ppo", "--task", "cartpole"], "'ppo' is for PPOModule, and the task 'cartpole' is for ControlPPO"),
        (["--base", "sft", "--task", "cartpole"], "leave --base out, or use --base control"),
        (["--task", "cartpol"], "did you mean 'cartpole'?"),
    ],
)
def test_texts_and_environments_do_not_mix(parser: ArgumentParser, words: list[str], message: str) -> None:
    with pytest.raises((UserError, ArgumentError)) as error:
        parsed(parser, words)
    assert message in str(error.value)


def test_a_comparison_of_environments_takes_their_base() -> None:
    settings = CompareSettings(axes={"task": ["cartpole"], "method": ["ppo", "iif"]})
    found = [[Path(name).stem for name in column.config] for column in columns_of(settings)]
    assert found == [["control", "cartpole", "ppo"], ["control", "cartpole", "iif"]]
