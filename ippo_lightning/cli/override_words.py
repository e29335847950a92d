"""Dotted options that go below a mapping, of which the parser keeps one per first key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ippo_lightning.cli.axis_options import Option
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
    for key, value in overrides.items():
        if "." not in key and isinstance(value, Mapping):
            found |= {f"{key}.{name}": part for name, part in full_keys(value).items()}
        else:
            found[key] = value
    return found


def is_override(option: Option) -> bool:
    """Return whether an option of `ippo compare` sets one key of all its runs: `--overrides.loop.resume true`.

    Raises:
        UserError: it sets a key of one method, which only a file can do.
    """
    if _OF_ONE_METHOD.fullmatch(option.name):
        raise UserError(f"{option.name}: the command line has no overrides of one method; write them in a YAML")
    return option.name.startswith("overrides.") and option.value is not None


def merged_overrides(layers: Sequence[Mapping[str, Any]], options: Sequence[Option]) -> dict[str, Any]:
    """Return the overrides of a comparison by their full keys; those of options win.

    Args:
        layers: of files and words, of which the last with overrides counts, as for the parser.
        options: for which `is_override` is true, in their order.
    """
    given = [layer["overrides"] for layer in layers if isinstance(layer.get("overrides"), Mapping)]
    found = full_keys(given[-1]) if given else {}
    # the value stays text, which each run reads as a word of its own command line
    return {**found, **{option.name.removeprefix("overrides."): option.value for option in options}}


def require_read(settings: Namespace, options: Sequence[Option]) -> None:
    """Refuse an option two levels below a mapping: the parser reads it, and drops its neighbours without a word.

    Args:
        settings: as parsed, of one command.
        options: of its words.

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
        if isinstance(node, dict):
            if place + 1 < len(parts):
                whole = ".".join(parts[: place + 1])
                raise UserError(
                    f"{option.name}: keys this deep in a mapping are not read correctly; give the whole value, for "
                    f"example --{whole} '{{...}}', or write it in a YAML"
                )
            return
        if not isinstance(node, Namespace):
            return
        # arguments may be given without the word that they are some
        inside = node if part in node or not isinstance(node.get("init_args"), Namespace) else node.init_args
        node = inside.get(part)
