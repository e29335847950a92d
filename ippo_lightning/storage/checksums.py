"""A checksum in a file: its reader knows whether the content is what was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from ippo_lightning.storage.atomic import write_whole

# Inside the file and not beside it: a checksum in a second file is lost, or wrong, after a kill between the two writes.
_END = re.compile(rb"\n(?P<label>[ -~]{1,100}), sha256 (?P<checksum>[0-9a-f]{64})\n\Z")
_LONGEST_END = 200
_CHECKSUM_BYTES = 65  # 64 digits and the end of the line
_CHUNK = 1 << 20
_KEY = "sha256"
_LINE = "# sha256 of the lines above: "


class _Hashed:
    """A file that hashes what is written to it; it has what `torch.save` needs of a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def write_checked(path: Path, write: Callable[[IO[bytes]], object], *, label: str) -> None:
    """Write a file atomically, with a last line that contains a label and the SHA-256 of all bytes before it.

    A zip archive, such as a file of `torch.save`, stays readable: its readers ignore bytes after its end record.

    Args:
        path: see `write_whole`.
        write: writes the content to the open file, from the beginning to the end.
        label: up to 100 ASCII characters; the checksum covers it too.

    Raises:
        OSError: see `write_whole`.
    """

    def write_with_end(file: IO[bytes]) -> None:
        hashed = _Hashed(file)
        write(cast(IO[bytes], hashed))
        hashed.write(f"\n{label}, sha256 ".encode("ascii"))
        file.write(hashed.digest.hexdigest().encode("ascii") + b"\n")

    write_whole(path, write_with_end)


def label_of(path: Path) -> str | None:
    """Return the label at the end of a file; None if the file has none or cannot be read. It reads 200 bytes.

    Args:
        path: of any file.
    """
    found = _end_of(path)
    return found["label"].decode("ascii") if found else None


def is_intact(path: Path) -> bool | None:
    """Return whether a file is what `write_checked` wrote; None if it has no checksum.

    Args:
        path: it is read completely.

    Raises:
        OSError: it cannot be read.
    """
    found = _end_of(path)
    if found is None:
        return None
    return digest_of(path, size=path.stat().st_size - _CHECKSUM_BYTES) == found["checksum"].decode("ascii")


def digest_of(path: Path, *, size: int | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
        path: of the file.
        size: how many of its first bytes count; None for all.

    Raises:
        OSError: it cannot be read.
    """
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
            digest.update(chunk)
            left = None if left is None else left - len(chunk)
    return digest.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with its checksum under the key `sha256`.

    Args:
        content: anything that JSON has.
    """
    return {**content, _KEY: _digest(content)}


def has_wrong_checksum(content: Mapping[str, Any]) -> bool:
    """Return whether the content of a JSON file is not that of its checksum; False without a checksum.

    Args:
        content: as it was read.
    """
    rest = dict(content)
    checksum = rest.pop(_KEY, None)
    try:
        return checksum is not None and checksum != _digest(rest)
    except RecursionError:  # thousands of nested brackets, which nothing here writes
        return True


def with_checksum_line(text: str) -> str:
    """Return a YAML text with its checksum in a last line, which is a comment.

    Args:
        text: of whole lines.
    """
    return f"{text}{_LINE}{hashlib.sha256(text.encode('utf-8')).hexdigest()}\n"


def has_wrong_checksum_line(text: str) -> bool:
    """Return whether a text is not that of its last line; False without such a line.

    Args:
        text: as it was read.
    """
    content, mark, checksum = text.rpartition(_LINE)
    return bool(mark) and hashlib.sha256(content.encode("utf-8")).hexdigest() != checksum.strip()


def without_checksum_line(text: str) -> str:
    """Return a text without the line that `with_checksum_line` has added, right or wrong."""
    content, mark, _ = text.rpartition(_LINE)
    return content if mark else text


def _digest(content: Mapping[str, Any]) -> str:
    # Through JSON once: what was written as a tuple is read as a list.
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _end_of(path: Path) -> re.Match[bytes] | None:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _LONGEST_END, 0))
            return _END.search(file.read())
    except OSError:
        return None
