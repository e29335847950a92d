"""What a value of an axis stands for: one file or several, and the run that a run with these files starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ippo_lightning.errors import UserError

START_BASE = "sft"
"""Base of the runs that others start from."""
_SEVERAL = ("model", "method")
_ENDINGS = (".yaml", ".yml")
_OVERLAYS = ("lora", "nf4", "bf16")
"""In the order in which they stand in the name of a run; others come behind them, by the alphabet."""


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
        UserError: there is no such file, or it is named twice.
    """
    files = [axis_file(axis, name, base=base) for name in names_of(axis, value)]
    return [files[place] for place in order_of(axis, files)]


def order_of(axis: str, files: Sequence[Path]) -> list[int]:
    """Return the places of files of one axis in the order in which they apply.

    Methods apply as they are given: a later one overrides an earlier one, and callbacks act in their order. Of models,
    overlays apply last. Two overlays that set nothing differently have one order, however they are given, so that the
    run has one name: `nf4+bf16` is `bf16+nf4`.

    Args:
        axis: `base`, `task`, `model` or `method`.
        files: in the order of the user.

    Raises:
        UserError: a file is named twice.
    """
    for place, path in enumerate(files):
        if path.resolve() in [other.resolve() for other in files[:place]]:
            raise UserError(f"{axis}: '{stem_of(path.name)}' is given twice; expected each name once")
    places = list(range(len(files)))
    if axis != "model":
        return places
    overlays = [place for place in places if is_overlay(files[place])]
    wholes = [place for place in places if place not in overlays]
    contents = [load_yaml(read_text(files[place]), origin=str(files[place])) for place in overlays]
    is_free = not any(_contradict(one, two) for at, one in enumerate(contents) for two in contents[:at])
    return [*wholes, *(sorted(overlays, key=lambda place: _rank(files[place])) if is_free else overlays)]


def _rank(path: Path) -> tuple[int, str]:
    name = stem_of(path.name)
    return (_OVERLAYS.index(name) if name in _OVERLAYS else len(_OVERLAYS), name)


def _contradict(first: Any, second: Any) -> bool:
    """Return whether two values of a YAML give another result if they change places."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return bool(first != second)
    for one in first:
        for two in second:
            name, other = str(one).removesuffix("+"), str(two).removesuffix("+")
            # Entries that are added to one list stand there in the order of the files.
            is_list = name == other and (str(one) != name or str(two) != other)
            # A dotted key may lie inside a section of the other file.
            is_inside = name.startswith(f"{other}.") or other.startswith(f"{name}.")
            if is_list or is_inside or (one == two and _contradict(first[one], second[two])):
                return True
    return False


def is_model_file(name: str) -> bool:
    """Return whether `--model NAME` names a file of the model axis; otherwise it names a class."""
    known = axis_names("model")
    return name.endswith(_ENDINGS) or any(part in known for part in names_of("model", name))


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
