"""Files of one JSON value per line; a line that cannot be read is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError

MAX_LINE_BYTES = 1 << 20
"""A longer line is refused before it is parsed."""


def json_lines(file: Path, *, field: str = "task.path") -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each line that is not blank.

    Args:
        file: exists.
        field: the user's setting that led to the file, for messages.

    Raises:
        UserError: a line is too long or is not JSON; the message names the file and the line, counted from 1.
    """
    with file.open("rb") as stream:
        number = 0
        # readline with a limit, because one line may be as long as the file
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{field}: {file}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{place}: more than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield place, _parsed(line, place)


def check_text(value: Any, key: str, place: str) -> str:
    """Return a text of a record.

    Args:
        value: what the record has under `key`.
        key: its name.
        place: of the record, for messages.

    Raises:
        UserError: it is no text, blank, or contains half a surrogate pair.
    """
    if not isinstance(value, str) or not value.strip():
        kind = "missing" if value is None else "empty" if value == "" else f"{type(value).__name__} {value!r:.40}"
        raise UserError(f"{place}: {key} is {kind}; expected text")
    # tokenizers raise an unreadable error at half a surrogate pair
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{place}: {key} contains half a surrogate pair; expected valid Unicode")
    return value


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        # its own text counts lines too, and the end of this line begins its line 2
        raise UserError(f"{place}: not JSON ({error.msg} at column {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{place}: not JSON ({reason})") from error
