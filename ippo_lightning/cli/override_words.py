"""Dotted options that go below a mapping, of which the parser keeps one per first key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ippo_lightning.cli.axis_options import Option
from ippo_lightning.cli.yaml_text import contains_null, loaded_word
from ippo_lightning.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace

_OF_ONE_METHOD = re.compile(r"methods\.[^.]+\.overrides\..+")


def full_keys(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides by their full keys: `{loop: {a: {b: 1}}}` becomes `{loop.a.b: 1}`.

    Args:
        overrides: of a file or of the command line. A mapping under a dotted key is a value of its own, such as the
            settings of LoRA.
    """
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        key = str(name)
        if "." not in key and isinstance(value, Mapping):
            found |= {f"{key}.{inside}": part for inside, part in full_keys(value).items()}
        else:
            found[key] = value
    return found


def is_override(option: Option) -> bool:
    """Return whether an option of `ippo compare` sets one key of all its runs: `--overrides.loop.resume true`.

    Raises:
        UserError: it sets a key of one method, which only a file can do; or its name is none.
    """
    if option.name.startswith("overrides.") and not all(re.fullmatch(r"\S+", one) for one in option.name.split(".")):
        raise UserError(
            f"{option.name!r}: no key of a run; expected a dotted one, such as overrides.loop.max_iterations"
        )
    if _OF_ONE_METHOD.fullmatch(option.name):
        raise UserError(f"{option.name}: the command line has no overrides of one method; write them in a YAML")
    return option.name.startswith("overrides.") and option.value is not None


def override_texts(options: Sequence[Option]) -> dict[str, str]:
    """Return overrides of the command line by their full keys, as text: each run reads it as a word of its own.

    Args:
        options: for which `is_override` is true, in their order; of one key the last counts.

    Raises:
        UserError: several add to one list.
    """
    names = [option.name for option in options]
    for name in names:
        if name.endswith("+") and names.count(name) > 1:
            raise UserError(f"{name}: given {names.count(name)} times; give one list with all of them")
    return {option.name.removeprefix("overrides."): str(option.value) for option in options}


def with_texts(overrides: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the overrides of a comparison by their full keys; those of the command line win.

    Args:
        overrides: of the files, as parsed.
        texts: from `override_texts`.

    Raises:
        UserError: both add to one list.
    """
    found = full_keys(overrides)
    twice = next((key for key in texts if key.endswith("+") and key in found), None)
    if twice is not None:
        raise UserError(
            f"overrides.{twice}: also in a file, whose list it would replace; give one list with all of them"
        )
    return {**found, **texts}


def require_read(settings: Namespace, options: Sequence[Option]) -> None:
    """Refuse an option two levels below a mapping, or a null below one: the parser would drop its neighbours.

    Args:
        settings: as parsed, of one command.
        options: of the words that the user typed.

    Raises:
        UserError: names the option, and the one that gives the value as a whole.
    """
    for option in options:
        if option.value is not None and option.name != "config":
            _require_read(settings, option)


def _require_read(settings: Namespace, option: Option) -> None:
    from jsonargparse import Namespace  # imported here because it takes long, and some commands need no parser

    node: Any = settings
    parts = option.name.split(".")
    for place, part in enumerate(parts):
        # a key of one object of a list is about the last one
        node = node[-1] if isinstance(node, list) and node else node
        if isinstance(node, dict) and isinstance(node.get(part), Namespace):
            node = node[part]  # an object with arguments, whose keys are read one by one
            continue
        if isinstance(node, dict):
            # a null below an argument goes through a file, which replaces the whole mapping
            is_null = ".init_args." in option.name and contains_null(loaded_word(str(option.value)))
            if place + 1 < len(parts) or is_null:
                what = "null" if is_null else "a key"
                whole = ".".join(parts[: place + (not is_null)])
                raise UserError(
                    f"{option.name}: {what} this deep in a mapping is not read correctly; give the whole value, for "
                    f"example --{whole} '{{...}}', or this key in a YAML with a mapping as its value"
                )
            return
        if not isinstance(node, Namespace):
            return
        # arguments may be given without the word that they are some
        inside = node if part in node or not isinstance(node.get("init_args"), Namespace) else node.init_args
        node = inside.get(part)
