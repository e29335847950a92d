"""Short class names: `PPOModule` for `ippo_lightning.modules.PPOModule`, in a YAML and on the command line."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from ippo_lightning.cli.sources import PACKAGE, definition, source_of
from ippo_lightning.errors import UserError

ROOMS = (
    "algorithms",
    "callbacks",
    "data",
    "maths",
    "metrics",
    "modules",
    "policies",
    "rewards",
    "rollouts",
    "selection",
    "tasks",
)
"""Rooms whose public names a YAML can use; a room that does not exist is skipped."""


@cache
def short_names() -> dict[str, tuple[str, ...]]:
    """Return the dotted paths of each short name: one, or several if the name is ambiguous."""
    found: dict[str, dict[str, str]] = {}
    for room in ROOMS:
        source = source_of(f"{PACKAGE}.{room}")
        for name in source.exported if source is not None else ():
            path = f"{PACKAGE}.{room}.{name}"
            home = definition(path)
            if home is not None and isinstance(home.node, (ast.ClassDef, ast.FunctionDef)):
                # two rooms may export one class: that is no ambiguity, and the first room gives the path
                found.setdefault(name, {}).setdefault(home.path, path)
    return {name: tuple(homes.values()) for name, homes in found.items()}


def full_path(name: str) -> str:
    """Return the dotted path of a short name; a name that is not one of them comes back as it is.

    Raises:
        UserError: the name is ambiguous.
    """
    paths = short_names().get(name, ())
    if len(paths) > 1:
        raise UserError(f"class_path: {name} is ambiguous; expected one of {', '.join(paths)}")
    return paths[0] if paths else name


def nearest_name(name: str) -> str | None:
    """Return the short name that is probably meant, or None."""
    # stricter than for keys: a bare word may also be a class of another library
    near = difflib.get_close_matches(name, sorted(short_names()), n=1, cutoff=0.8)
    return near[0] if near else None


def expand_names(value: Any, *, is_argument: bool = False) -> Any:
    """Return a value of a YAML with every short name replaced by its dotted path, at any depth.

    A `class_path` is always replaced. Another text is replaced if it is an argument of an object and names a function
    (`reward: arithmetic_reward`). A text that happens to be the name of a class stays, because it may be just text;
    where an argument takes objects, the parser itself finds the class.

    Args:
        value: as loaded.
        is_argument: whether the value lies inside `init_args`.

    Raises:
        UserError: a name is ambiguous.
    """
    if isinstance(value, list):
        return [expand_names(item, is_argument=is_argument) for item in value]
    if isinstance(value, Mapping):
        return {
            key: full_path(item)
            if key == "class_path" and isinstance(item, str)
            else expand_names(item, is_argument=is_argument or key == "init_args")
            for key, item in value.items()
        }
    return full_path(value) if is_argument and isinstance(value, str) and is_function(value) else value


def is_function(name: str) -> bool:
    """Return whether a short name names a function; such names have an underscore, so that plain words stay."""
    paths = short_names().get(name, ())
    found = definition(paths[0]) if paths and "_" in name else None
    return found is not None and isinstance(found.node, ast.FunctionDef)
