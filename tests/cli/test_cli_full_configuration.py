"""A stored or printed configuration is whole: it has every argument of every object, and it gives the same objects."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pydoc
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import change, write
from jsonargparse import Namespace

from ippo_lightning.cli.building import build_objects, full_config
from ippo_lightning.cli.full_configuration import fill_parts
from ippo_lightning.cli.main import main
from ippo_lightning.cli.parsers import build_parser
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.run.stable_text import stable_text


@pytest.fixture(params=["PPOModule", "SFTModule"])
def smallest(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """An experiment that leaves everything to its default that has one; the task is given by its name."""
    policy = {"class_path": "ippo_lightning.policies.CausalLMPolicy", "init_args": {"pretrained": str(tiny_model)}}
    model = {"class_path": f"ippo_lightning.modules.{request.param}", "init_args": {"policy": policy}}
    return {
        "loop": {"run_dir": str(tmp_path / "run")},
        "model": model,
        "data": {"class_path": "ippo_lightning.data.TextDataModule", "init_args": {"task": "arithmetic"}},
        "callbacks": [{"class_path": "ippo_lightning.callbacks.InfluenceFilter"}],
    }


def printed(experiment: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(experiment, folder), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def missing(value: Any, hint: Any, place: str) -> Iterator[str]:
    """Yield each argument that a class or a dataclass has, and its place in the configuration lacks."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from missing(item, None, f"{place}.{number}")
    if not isinstance(value, dict):
        return
    target, arguments = hint, value
    if "class_path" in value:
        target, arguments = pydoc.locate(value["class_path"]), value.get("init_args", {})
    if not inspect.isclass(target) or ("class_path" not in value and not dataclasses.is_dataclass(target)):
        return
    hints = typing.get_type_hints(target if dataclasses.is_dataclass(target) else target.__init__)
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in arguments:
            yield f"{place}.{name}"
        leaves = [
            leaf for leaf in (hints.get(name), *typing.get_args(hints.get(name))) if dataclasses.is_dataclass(leaf)
        ]
        yield from missing(arguments.get(name), next(iter(leaves), None), f"{place}.{name}")


def test_every_argument_of_every_object_is_in_the_configuration(
    smallest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = printed(smallest, tmp_path, capsys)
    for section in ("model", "data", "callbacks"):
        assert list(missing(whole[section], None, section)) == []
    assert whole["loop"].keys() == {field.name for field in dataclasses.fields(LoopSettings)}
    assert whole["data"]["init_args"]["task"]["init_args"]["num_train"] == 4096
    # the two names that one looks for first
    assert whole["model"]["init_args"]["optimizer"]["learning_rate"] == 1e-4
    assert whole["callbacks"][0]["init_args"]["scoring"]["method"] == "hooks"


def settings_of(value: Any) -> dict[str, Any]:
    """What a module was built with: its settings and parts, without the weights."""
    parts = {name: part for name, part in vars(value).items() if not name.startswith("_")}
    return {name: part for name, part in parts.items() if not isinstance(part, torch.nn.Module)}


def built(experiment: dict[str, Any], folder: Path) -> Any:
    parser = build_parser("fit")
    return build_objects(parser, parser.parse_args(["fit", "--config", write(experiment, folder)]))


def test_the_whole_configuration_gives_the_same_objects(
    smallest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = printed(smallest, tmp_path, capsys)
    # the parser has read them out of the words of the command
    for name in ("resume", "trust"):
        whole.pop(name, None)
    short, long = built(smallest, tmp_path), built(whole, tmp_path)
    for first, second in ((short.model, long.model), (short.data, long.data), (short.callbacks[0], long.callbacks[0])):
        assert stable_text(settings_of(first), depth=8) == stable_text(settings_of(second), depth=8)
    assert stable_text(short.loop) == stable_text(long.loop)
    weights = [dict(module.named_parameters()) for module in (short.model, long.model)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_null_in_place_of_a_number_is_stored_and_read_back_as_null(smallest: dict[str, Any], tmp_path: Path) -> None:
    arguments = smallest["model"]["init_args"]
    if "PPOModule" in smallest["model"]["class_path"]:
        arguments["update"] = {"max_grad_norm": None}
        arguments["value_loss"] = {"clip_range": None}
    else:
        arguments["max_grad_norm"] = None
    parser = build_parser("fit")
    given = parser.parse_args(["fit", "--config", write(smallest, tmp_path)])
    stored = tmp_path / "stored.yaml"
    stored.write_text(full_config(parser, given), encoding="utf-8")
    again = parser.parse_args(["fit", "--config", str(stored)])
    assert full_config(parser, again) == stored.read_text(encoding="utf-8")
    model = build_objects(parser, again).model
    if isinstance(model, PPOModule):
        assert model.update_settings.max_grad_norm is None
        assert model.value_loss.clip_range is None
    else:
        assert model.max_grad_norm is None


def test_what_the_module_uses_is_what_the_configuration_states(
    smallest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(printed(smallest, tmp_path, capsys))
    module = built(smallest, tmp_path).model
    parts = [value for value in vars(module).values() if dataclasses.is_dataclass(value)]
    # settings are frozen; other records change during a run
    used = [value for value in parts if value.__dataclass_params__.frozen]
    assert used
    for settings in used:
        assert json.dumps(dataclasses.asdict(settings))[1:-1] in text, type(settings).__name__


def test_evaluation_still_follows_what_sampling_is_changed_to(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(experiment, tmp_path, capsys)["model"]["init_args"]["evaluation"] is None


def test_a_folder_of_an_earlier_version_whose_configuration_has_nulls_resumes_bit_for_bit(
    experiment: dict[str, Any], tmp_path: Path
) -> None:
    config = write(experiment, tmp_path)
    assert main(["fit", "--config", config, "--loop.run_dir", str(tmp_path / "whole")]) == 0
    assert main(["fit", "--config", config, "--loop.max_iterations", "2"]) == 0
    saved = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(saved.read_text(encoding="utf-8"))
    for name in ("advantages", "loss", "value_loss", "kl_controller"):
        content["model"]["init_args"][name] = None
    content["callbacks"][0]["init_args"]["scoring"] = None
    saved.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["fit", "--resume", str(tmp_path / "run"), "--loop.max_iterations", "4", "--trust"]) == 0
    runs = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "run")]
    names = runs[0]["parameters"].keys()
    assert all(torch.equal(runs[0]["parameters"][name], runs[1]["parameters"][name]) for name in names)
    assert [saved["settings"] for saved in runs[0]["callbacks"]] == [
        saved["settings"] for saved in runs[1]["callbacks"]
    ]


def test_a_class_of_the_users_that_states_no_parts_stays_as_it_is() -> None:
    settings = {"class_path": "collections.OrderedDict", "init_args": {"x": None}}
    fill_parts([settings, None, 1])
    assert settings == {"class_path": "collections.OrderedDict", "init_args": {"x": None}}


class OwnUpdate(PPOModule):
    """A module of the user's, in which None is another value than in its base."""

    def __init__(self, *, policy: CausalLMPolicy, update: UpdateSettings | None = None, **settings: Any) -> None:
        super().__init__(policy=policy, update=update or UpdateSettings(num_epochs=1), **settings)


def test_an_argument_that_a_class_of_the_users_takes_itself_stays_open() -> None:
    arguments = Namespace(update=None, loss=None)
    fill_parts(Namespace(class_path=f"{__name__}.OwnUpdate", init_args=arguments))
    assert arguments["update"] is None
    assert arguments.loss.class_path.endswith("ClippedLoss")


def test_the_folder_and_the_card_of_a_run_state_what_was_left_open(experiment: dict[str, Any], tmp_path: Path) -> None:
    del experiment["model"]["init_args"]["optimizer"]
    change(experiment, "loop.max_iterations", 1)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["init_args"]["optimizer"]["learning_rate"] == 1e-4
    chosen = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["chosen"]
    assert chosen["policy.reference"] == "copy"
    assert chosen["model.reward"] == "rewards_for_tests.right"
    assert chosen["policy.value_init_std"] == pytest.approx(17**-0.5)  # 16 features and a bias
    assert main(["export", str(tmp_path / "run")]) == 0
    card = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["model"]["init_args"]["optimizer"]["betas"]
    assert "| fabric.precision | 32-true |" in card
