"""Changing an experiment and writing it down."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.quick_check import check_command

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
"""A language model that runs in milliseconds."""
CONTROL_TASKS = ("acrobot", "bipedalwalker", "cartpole", "frozenlake", "highway", "lunarlander", "minigrid")
"""Tasks of environments, which have a base of their own."""
REWARD_TASKS = ("detox", "sentiment")
"""Tasks without right answers, which name a reward model and a judge."""
REWARD_METHODS = ("iif_text",)
"""Methods for such tasks."""
CONTROL_MODELS = ("minigrid_cnn", "mlp")
"""Their networks."""


def change(experiment: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making sections on the way; a number is a place in a list."""
    *sections, last = key.split(".")
    for section in sections:
        experiment = experiment[int(section)] if section.isdigit() else experiment.setdefault(section, {})
    place: Any = int(last) if last.isdigit() else last
    experiment[place] = value


def write(experiment: dict[str, Any], folder: Path) -> str:
    """Write an experiment as YAML; return the file's name."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return str(path)


def write_tree(root: Path, experiment: dict[str, Any]) -> None:
    """Write an experiment as a tree by axes: experiments/base, tasks, models, methods under `root`.

    The task is called `sums` and the model `tiny`; the methods are `ippo` and `stopping`.
    """
    model = experiment["model"]
    policy = model["init_args"].pop("policy")
    files = {
        "base/ppo": {"loop": experiment["loop"], "model": model, "callbacks": [{"class_path": "EpisodeLog"}]},
        "tasks/sums": {"data": experiment["data"], "model": {"init_args": {"policy": policy}}},
        "tasks/differences": {"data": experiment["data"], "model": {"init_args": {"policy": policy}}},
        "models/tiny": {"model": {"init_args": {"policy": {"init_args": {"lora": {"r": 2}}}}}},
        "methods/ippo": {"callbacks+": [{"class_path": "InfluenceFilter", "init_args": {"power": 0.5}}]},
        "methods/stopping": {"callbacks+": {"class_path": "IntrinsicStopping"}},
    }
    for name, content in files.items():
        path = root / "experiments" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def parsed(parser: ArgumentParser, words: list[str]) -> dict[str, Any]:
    """Return the full settings of `ippo fit` with these words."""
    return copy.deepcopy(_parsed(parser, tuple(words), Path.cwd()))


@functools.lru_cache(maxsize=64)
def _parsed(parser: ArgumentParser, words: tuple[str, ...], _folder: Path) -> dict[str, Any]:
    """Many tests compare other settings with the same plain ones, and a parse takes a third of a second."""
    line = read_command_line(["fit", *words])
    check_command(line)
    return parser.parse_args(line.words[1:]).as_dict()
