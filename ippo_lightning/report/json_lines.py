"""JSON-lines files of unknown size and origin: a crash, a full disk or a model may have written anything into them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from ippo_lightning.storage.run_folder import JsonObject

_LOG = logging.getLogger(__name__)

LONGEST_LINE = 16 * 1024 * 1024
"""Characters of one JSON line; a longer line is left out and counted."""


def read_rows(path: Path) -> tuple[list[JsonObject], int]:
    """Read the rows of a JSON-lines file.

    Args:
        path: the file; it may be missing.

    Returns:
        The objects that have an integer `iteration`, and the number of other lines before the last line.
    """
    if not path.is_file():
        return [], 0
    rows: list[JsonObject] = []
    unreadable = 0
    last_is_broken = False
    for line in _lines(path):
        row = _parsed(line)
        last_is_broken = row is None
        if row is None:
            unreadable += 1
        else:
            rows.append(row)
    # A run that is killed while it writes leaves half a line at the end. That is expected, so it does not count.
    unreadable -= last_is_broken
    if unreadable:
        _LOG.warning("%s: %d unreadable lines left out", path, unreadable)
    return rows, unreadable


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines that are not blank; of a line that is too long only the first character, which is no JSON."""
    # replace: a broken byte spoils its own line and not the file. newline: only \n ends a line, a lone \r does not.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as handle:
        while line := handle.readline(LONGEST_LINE):
            tail = line
            # The rest of a long line is read in pieces and forgotten, so that memory stays bounded.
            while not tail.endswith("\n") and (tail := handle.readline(LONGEST_LINE)):
                line = line[:1]
            if line.strip():
                yield line


def _parsed(line: str) -> JsonObject | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return None
    # bool is a subclass of int, and JSON's `true` is no iteration
    usable = isinstance(row, dict) and isinstance(row.get("iteration"), int) and not isinstance(row["iteration"], bool)
    return row if usable else None
