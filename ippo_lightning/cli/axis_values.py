"""What a value of an axis stands for: one file or several, and the run that a run with these files starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ippo_lightning.cli.experiment_paths import (
    DEFAULT_BASE,
    FOLDERS,
    Part,
    axis_file,
    axis_names,
    derived_run_dir,
    stem_of,
)
from ippo_lightning.cli.yaml_text import load_yaml, read_text

START_BASE = "sft"
"""Base of the runs that others start from."""
_SEVERAL = ("model", "method")
_ENDINGS = (".yaml", ".yml")


def names_of(axis: str, value: str) -> list[str]:
    """Return the names in a value of an axis: `gemma-2-2b+nf4` are two files, as in the name of a run's folder.

    Args:
        axis: `base`, `task`, `model` or `method`. Only models and methods combine.
        value: a name, several joined by `+`, or the path of a YAML.
    """
    is_one = axis not in _SEVERAL or value.endswith(_ENDINGS) or value in axis_names(axis)
    return [value] if is_one else value.split("+")


def is_overlay(path: Path) -> bool:
    """Return whether a file of the model axis names no model, and so changes the one of another file.

    Overlays apply last: a file that names a model also resets what the task has set for its own.
    """
    found: Any = load_yaml(read_text(path), origin=str(path))
    for key in ("model", "init_args", "policy", "init_args"):
        found = found.get(key) if isinstance(found, dict) else None
    return not isinstance(found, dict) or not any(found.get(key) for key in ("pretrained", "config", "start_from"))


def axis_files(axis: str, value: str, *, base: str = DEFAULT_BASE) -> list[Path]:
    """Return the files of a value of an axis, in the order in which they apply.

    Args:
        axis: `base`, `task`, `model` or `method`.
        value: see `names_of`.
        base: see `axis_file`.

    Raises:
        UserError: there is no such file.
    """
    files = [axis_file(axis, name, base=base) for name in names_of(axis, value)]
    return sorted(files, key=is_overlay) if axis == "model" else files


def part_named(axis: str, name: str) -> Part:
    """Return the part of a run's name that a value of an axis gives, wherever its file lies.

    Args:
        axis: `base`, `task`, `model` or `method`.
        name: one name, or the path of a YAML.
    """
    return Part(FOLDERS[axis], stem_of(name))


def derived_start(parts: list[Part]) -> str | None:
    """Return the folder of the SFT run with the same task and models, or None without a task and for that run itself.

    Args:
        parts: of the run that starts there, in the order of the files.
    """
    tasks_and_models = [part for part in parts if part.folder in (FOLDERS["task"], FOLDERS["model"])]
    has_task = any(part.folder == FOLDERS["task"] for part in parts)
    start = Part(FOLDERS["base"], START_BASE)
    return derived_run_dir([start, *tasks_and_models]) if has_task and start not in parts else None
