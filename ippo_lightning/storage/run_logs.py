"""The files that a run appends to, and what a checkpoint knows of them.

A checkpoint covers the lines that were there when it was written. On resume they are compared with what it knows, and
what was lost is completed from it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from ippo_lightning.storage.atomic import sync_file, sync_folder, write_whole
from ippo_lightning.storage.checksums import digest_of

_LARGEST_COPY = 64 * 1024 * 1024
"""Bytes of a file of which a checkpoint keeps a copy."""


class Covered(TypedDict):
    """What a checkpoint covers of one file."""

    size: int
    """Bytes."""
    sha256: str
    copy: str
    """The lines, compressed; empty if there is no copy."""


class _Progress:
    """The checksum of a file that grows: each byte is read once, however many checkpoints there are."""

    def __init__(self) -> None:
        self.size = 0
        self.digest = hashlib.sha256()

    def follow(self, path: Path) -> None:
        if path.stat().st_size < self.size:  # somebody cut the file
            self.size, self.digest = 0, hashlib.sha256()
        with path.open("rb") as file:
            file.seek(self.size)
            while chunk := file.read(1 << 20):
                self.digest.update(chunk)
                self.size += len(chunk)


class RunLogs:
    """The appended files in the folder of a run.

    Args:
        folder: of the run.
        names: of the files that every run may have.
        copied: those of which a checkpoint keeps a copy; episodes are too large for that.
        evaluations: the file whose lines carry the number of iterations done before them.
    """

    def __init__(self, folder: Path, names: Iterable[str], *, copied: Iterable[str], evaluations: str) -> None:
        self.folder = folder
        self.names = list(names)
        self.copied = frozenset(copied)
        self.evaluations = evaluations
        self._progress: dict[str, _Progress] = {}

    def add(self, names: Iterable[str]) -> None:
        """Add the files of a callback.

        Args:
            names: in the run's folder.
        """
        self.names += [name for name in names if name not in self.names]

    def covered(self) -> dict[str, Covered]:
        """Force the lines so far to disk, and return what a checkpoint keeps of them.

        Raises:
            OSError: the disk is full or broken.
        """
        found: dict[str, Covered] = {}
        for name in self.names:
            path = self.folder / name
            if not path.is_file():
                continue
            # Before the checkpoint: after a power failure it must not know lines that the disk does not have.
            sync_file(path)
            progress = self._progress.setdefault(name, _Progress())
            progress.follow(path)
            has_copy = name in self.copied and progress.size <= _LARGEST_COPY
            copy = _packed(path.read_bytes()) if has_copy else ""
            found[name] = {"size": progress.size, "sha256": progress.digest.hexdigest(), "copy": copy}
        if found:
            sync_folder(self.folder)
        return found

    def restore(self, covered: Mapping[str, Covered] | None, *, iteration: int) -> list[str]:
        """Leave the lines that a checkpoint covers, which a resumed run then appends to; return what was wrong.

        Args:
            covered: from the checkpoint; None from one of an earlier version, which knows nothing of the lines.
            iteration: the first iteration that the resumed run does.

        Returns:
            One line for each file that is not what the checkpoint covers.
        """
        problems: list[str] = []
        for name in self.names:
            path, part = self.folder / name, (covered or {}).get(name)
            if part is None:
                # An evaluation before iteration 5 carries the number 5: it belongs to the five iterations already done.
                # A checkpoint that knows of other lines and not of this one is older than it.
                last = iteration if covered is None and name == self.evaluations else iteration - 1
                _keep_lines_until(path, last)
            elif _begins_with(path, part):
                _cut(path, part["size"])
            elif part["copy"]:
                _write(path, _unpacked(part["copy"]))
                problems.append(f"{path} is not what the checkpoint covers; it is completed from the checkpoint")
            else:
                _keep_lines_until(path, iteration - 1)
                problems.append(f"{path} is not what the checkpoint covers; lines are lost or changed, and stay so")
        self._progress.clear()
        return problems

    def read_rows(self, name: str) -> list[Mapping[str, Any]]:
        """Return the complete lines of file `name`; empty if there is no such file."""
        path = self.folder / name
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if math.isfinite(_iteration(line))]


def _begins_with(path: Path, part: Covered) -> bool:
    if not path.is_file() or path.stat().st_size < part["size"]:
        return False
    return digest_of(path, size=part["size"]) == part["sha256"]


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        os.truncate(path, size)
        sync_file(path)


def _keep_lines_until(path: Path, last: int) -> None:
    """Remove the lines of iterations after `last`, and those that are cut off."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = "".join(line + "\n" for line in lines if _iteration(line) <= last)
        _write(path, kept.encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def _packed(content: bytes) -> str:
    # As text: a checkpoint contains tensors and plain values only.
    return base64.b85encode(zlib.compress(content)).decode("ascii")


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a crash cut the line off; infinity counts as "after" every iteration
