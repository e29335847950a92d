"""A dotted option below a mapping is read as it was meant, or refused: never half of it without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo_lightning.cli.axis_options import options_of
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.cli.main import main
from ippo_lightning.cli.override_words import full_keys, require_read
from ippo_lightning.cli.parsers import build_parser, compare_parser
from ippo_lightning.errors import UserError

CONFIG = "model.init_args.policy.init_args.config"
RUN = ["fit", "--base", "sft", "--task", "arithmetic"]


def read(*words: str) -> Any:
    """Parse words of `ippo fit` and check them; return the settings."""
    line = read_command_line([*RUN, *words])
    settings = build_parser("fit").parse_args(line.words).fit
    require_read(settings, list(options_of(words)))
    return settings


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ({}, {}),
        ({"a.b": 1, "a": {"c": 2, "d": {"e": 3}}}, {"a.b": 1, "a.c": 2, "a.d.e": 3}),
        ({"a": {"b.c": 1}}, {"a.b.c": 1}),
        ({"a.b": {"c": 1}}, {"a.b": {"c": 1}}),
        ({"a": {}}, {}),
        ({"a": None, "b": [1]}, {"a": None, "b": [1]}),
        ({1: {2: 3}}, {"1.2": 3}),  # keys of a YAML need not be texts
    ],
)
def test_the_full_keys_of_overrides(overrides: dict[str, Any], found: dict[str, Any]) -> None:
    assert full_keys(overrides) == found


def test_keys_of_one_mapping_come_together() -> None:
    settings = read(f"--{CONFIG}.hidden_size", "48", f"--{CONFIG}.num_hidden_layers=2")
    found = settings.model.init_args.policy.init_args.config
    assert (found["hidden_size"], found["num_hidden_layers"]) == (48, 2)
    assert found["model_type"] == "llama", "what the file says beside them stays"


@pytest.mark.parametrize("depth", ["factor", "a.b"])
@pytest.mark.parametrize("inside", [CONFIG, "model.policy.config"])
def test_a_key_two_levels_below_a_mapping_is_refused(inside: str, depth: str) -> None:
    said = rf"^{inside}\.rope_scaling\.{depth}: .*give the whole value, for example --{inside}\.rope_scaling '"
    with pytest.raises(UserError, match=said):
        read(f"--{inside}.rope_scaling.{depth}", "2.0")
    whole = read(f"--{CONFIG}.rope_scaling", "{rope_type: linear, factor: 2.0}")
    found = whole.model.init_args.policy.init_args.config["rope_scaling"]
    assert found == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("value", ["null", "~", "{rope_type: null}", "[1, null]"])
def test_a_null_below_a_mapping_is_refused_and_a_whole_null_passes(value: str) -> None:
    said = rf"^{CONFIG}\.rope_scaling: null this deep in a mapping .*, for example --{CONFIG} '"
    with pytest.raises(UserError, match=said):
        read(f"--{CONFIG}.rope_scaling", value)
    assert read(f"--{CONFIG}", "null").model.init_args.policy.init_args.config is None


def test_keys_of_objects_in_a_mapping_pass(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("methods: {a: {config: [x.yaml], title: T}, b: {config: [y.yaml]}}")
    line = read_command_line(["compare", "--config", str(tmp_path / "grid.yaml"), "--methods.a.title", "X"])
    settings = compare_parser().parse_args(line.words[1:])
    require_read(settings, list(options_of(["--methods.a.title", "X"])))
    assert {name: (method.title, method.config) for name, method in settings.methods.items()} == {
        "a": ("X", ["x.yaml"]),
        "b": ("", ["y.yaml"]),
    }


def test_arguments_of_objects_and_of_the_last_of_a_list_pass() -> None:
    callback = "ippo_lightning.callbacks.EpisodeLog"
    settings = read(
        "--model.optimizer.learning_rate", "1e-3", "--callbacks+", callback, "--callbacks.init_args.file_name", "a"
    )
    assert settings.model.init_args.optimizer.learning_rate == 1e-3
    assert settings.callbacks[-1].init_args.file_name == "a"


def test_the_command_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, f"--{CONFIG}.rope_scaling.factor", "2.0", "--loop.max_iterations", "1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"ippo: error: {CONFIG}.rope_scaling.factor: a key this deep in a mapping")


def test_options_for_a_finished_run_are_checked_too(tmp_path: Path) -> None:
    parser = build_parser("fit")
    found = yaml.safe_load(parser.dump(parser.parse_args(read_command_line(RUN).words)))["fit"]
    content = {key: found[key] for key in ("fabric", "loop", "model", "data")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["evaluate", str(tmp_path)]
    assert experiment_of(tmp_path, "--fabric.devices=1", given=words)[1].evaluate.fabric.devices == "1"
    with pytest.raises(UserError, match=rf"^{CONFIG}\.rope_scaling\.factor: a key this deep"):
        experiment_of(tmp_path, f"--{CONFIG}.rope_scaling.factor=2.0", given=words)
