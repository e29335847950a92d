"""A configuration as others may read it: the text of a YAML or JSON with its private values replaced in place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from ippo_lightning.storage.public_text import is_prose, public_text
from ippo_lightning.storage.secret_forms import hidden_value, is_secret_key

_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_PLAIN = re.compile(r"[A-Za-z<][\w./@+<>-]*")
_LINE = re.compile(r"^([ \t]*(?:-[ \t]+)*[\"']?([\w.-]{1,100})[\"']?[ \t]*:[ \t]+)(\S.*)$", re.MULTILINE)
_DEEPEST = 200


@dataclass
class _Level:
    """A list or a mapping that the reader is inside of."""

    is_mapping: bool
    key: str
    """Of the values: a list has that of itself."""
    is_secret: bool
    awaits_key: bool
    is_flow: bool
    """Between brackets, as in JSON."""


class _Scalar(NamedTuple):
    event: Any
    key: str
    """Of the value; empty for a key itself."""
    is_secret: bool
    """Whether it lies below a secret key."""
    is_flow: bool


def public_yaml(text: str) -> str:
    r"""Return a YAML or JSON whose values are what `public_value` makes of them; all else stays as it is written.

    Args:
        text: of any origin. What is no YAML is read line by line.

    Example:
        >>> print(public_yaml("path: /scratch/ada/x.jsonl  # mine\nheaders: {X-Api-Key: '12'}"))
        path: x.jsonl  # mine
        headers: {X-Api-Key: "<hidden>"}
    """
    shown: list[str] = []
    end = 0
    try:
        for scalar in _scalars(text):
            first, last = scalar.event.start_mark.index, scalar.event.end_mark.index
            found = _PROPERTIES.match(text, first, last)
            first = found.end() if found else first
            shown += [_between(text[end:first]), _written(text[first:last], scalar)]
            end = last
    except (yaml.YAMLError, RecursionError):
        return "".join(shown) + _LINE.sub(_line, _between(text[end:]))
    return "".join(shown) + _between(text[end:])


def public_value(value: str, *, key: str = "") -> str:
    """Return a value as `public_text` gives it; of a JSON in a text, each of its values.

    Args:
        value: of a configuration.
        key: of the value.
    """
    is_json = not is_prose(key) and not is_secret_key(key) and _is_json(value)
    return public_yaml(value) if is_json else public_text(value, key=key)


def _is_json(text: str) -> bool:
    if text[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _scalars(text: str) -> Iterator[_Scalar]:
    """Yield each scalar in the order of the text."""
    # events and not values: they have places in the text, and an alias is not what it repeats
    levels = [_Level(is_mapping=False, key="", is_secret=False, awaits_key=False, is_flow=False)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level = levels[-1]
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        is_key = level.is_mapping and level.awaits_key
        key = "" if is_key else level.key
        if level.is_mapping:
            level.awaits_key = not level.awaits_key
        if isinstance(event, yaml.ScalarEvent):
            if is_key:
                level.key = event.value
            yield _Scalar(event, key, level.is_secret and not is_key, level.is_flow)
        elif isinstance(event, yaml.CollectionStartEvent):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            is_secret = level.is_secret or is_secret_key(key)
            levels.append(
                _Level(
                    is_mapping, key, is_secret, awaits_key=is_mapping, is_flow=level.is_flow or bool(event.flow_style)
                )
            )
            if len(levels) > _DEEPEST:
                raise yaml.YAMLError("deeper than settings are")


def _written(written: str, scalar: _Scalar) -> str:
    event = scalar.event
    public = hidden_value(event.value) if scalar.is_secret else public_value(event.value, key=scalar.key)
    if public == event.value:
        return written
    # JSON has no words without quotes
    is_plain = event.style is None and not scalar.is_flow and _PLAIN.fullmatch(public)
    new = public if is_plain and isinstance(yaml.safe_load(public), str) else json.dumps(public, ensure_ascii=False)
    # a block ends with the line break before the next key
    return new + "\n" if event.style in ("|", ">") and written.endswith("\n") else new


def _between(text: str) -> str:
    """Return signs and comments, which are text for people."""
    return public_text(text, key="text")


def _line(found: re.Match[str]) -> str:
    value = found[3].strip()
    quote = value[0] if len(value) > 1 and value[0] in "\"'" and value.endswith(value[0]) else ""
    inner = value[1:-1] if quote else value
    public = public_value(inner, key=found[2])
    return found[0] if public == inner else f"{found[1]}{quote}{public}{quote}"
