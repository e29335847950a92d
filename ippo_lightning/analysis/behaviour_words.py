"""How a user names a behaviour: a pair of numbers, a kept record, or a JSON file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.json_lines import MAX_LINE_BYTES, check_text, json_lines

_EXPECTED = "expected OBSERVATION:ACTION as in 14:2, record:ITERATION:ROW as in record:5:17, or a JSON file"
_PAIRS = ({"observation", "action"}, {"prompt", "response"})


@dataclass(frozen=True, kw_only=True)
class NamedPair:
    """The number of an observation and that of an action."""

    observation: int
    action: int


@dataclass(frozen=True, kw_only=True)
class NamedRecord:
    """A row of a kept iteration."""

    iteration: int
    row: int


@dataclass(frozen=True, kw_only=True)
class NamedTransition:
    """An observation and an action, of any shapes."""

    observation: tuple[float, ...]
    action: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NamedResponse:
    """A prompt and a response."""

    prompt: str
    response: str


Named = NamedPair | NamedRecord | NamedTransition | NamedResponse


def read_behaviour(text: str) -> Named:
    """Return what a user means by `--behaviour`.

    Args:
        text: `14:2`, `record:5:17`, or the path of a JSON file.

    Raises:
        UserError: it is none of these, or the file has another content.
    """
    pair = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if pair is not None:
        return NamedPair(observation=int(pair[1]), action=int(pair[2]))
    record = re.fullmatch(r"record:(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if record is not None:
        return NamedRecord(iteration=int(record[1]), row=int(record[2]))
    if not Path(text).is_file():
        raise UserError(f"behaviour: '{text[:80]}' is no file; {_EXPECTED}")
    place, content = _content(Path(text))
    if not isinstance(content, Mapping) or not any(keys <= content.keys() for keys in _PAIRS):
        raise UserError(f"{place}: expected an object with observation and action, or with prompt and response")
    if "prompt" in content:
        texts = {key: check_text(content.get(key), key, place) for key in ("prompt", "response")}
        return NamedResponse(**texts)
    return NamedTransition(**{key: _numbers(content[key], f"{place}: {key}") for key in ("observation", "action")})


def _content(file: Path) -> tuple[str, Any]:
    """Return the place and the one value of a file of JSON, or of JSON lines."""
    place = f"behaviour: {file}"
    try:
        with file.open("rb") as stream:
            whole = stream.read(MAX_LINE_BYTES + 1)
        if len(whole) > MAX_LINE_BYTES:
            raise UserError(f"{place}: more than {MAX_LINE_BYTES} bytes; expected one record")
        try:
            return place, json.loads(whole)
        except (ValueError, RecursionError):
            found = list(json_lines(file, field="behaviour"))
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror})") from error
    if len(found) != 1:
        raise UserError(f"{place}: {len(found)} records; expected one")
    return found[0]


def _numbers(value: Any, place: str) -> tuple[float, ...]:
    """Return a number, or lists of numbers at any depth, as one list."""
    if isinstance(value, list):
        return tuple(number for part in value for number in _numbers(part, place))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared and not converted: an integer may be too large for a float.
    if not is_number or not -_LARGEST <= value <= _LARGEST:
        raise UserError(f"{place} has {str(value)[:40]!r}; expected finite numbers")
    return (float(value),)


_LARGEST = sys.float_info.max
