"""Write files atomically: after an interruption a file is either complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""Suffix of an unfinished file; one that remains after a crash can be deleted."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name, force it to disk, and only then rename it.

    Args:
        path: the file; its folder is created if missing.
        write: writes the content to the open file.

    Raises:
        OSError: the disk is full or read-only; an older file of that name does not change.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            write(file)
            # Without fsync a power failure may keep the new name but lose the content.
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # Ctrl-C too
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def link_whole(source: Path, path: Path) -> None:
    """Give a file a second name and replace any file of that name; copy it if the file system has no hard links.

    Args:
        source: a complete file in the same folder.
        path: the second name.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        # A link under a temporary name, then a rename: os.link itself cannot replace an existing file.
        os.link(source, partial)
    except OSError:
        with source.open("rb") as content:
            write_whole(path, lambda file: shutil.copyfileobj(content, file))
        return
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force the content of a file to disk, whoever wrote it.

    Args:
        path: of an existing file.

    Raises:
        OSError: the disk is full or broken.
    """
    # Not os.O_RDONLY: Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, if the operating system supports that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
