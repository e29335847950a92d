"""A folder of files that belong together: written beside its place, forced to disk, and only then moved there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ippo_lightning.storage.atomic import PARTIAL, sync_file, sync_folder

Result = TypeVar("Result")

_READ_FIRST = ("config.json", "adapter_config.json")
"""Without its first file, no loader takes a folder for a model."""


def fill_folder(
    folder: Path,
    write: Callable[[Path], Result],
    *,
    announce: Callable[[list[str]], Iterable[str]] = lambda names: (),
) -> Result:
    """Write files into a folder. Files of other names stay.

    While files are moved, the folder has none of the files that a loader reads first. So a model of which a kill has
    moved a part cannot be loaded, and is not taken for a whole one.

    Args:
        folder: created if it is missing.
        write: writes the files into the folder that it gets.
        announce: called with the names of the files, relative to `folder`, when all are written and none is moved;
            returns names of files to remove.

    Returns:
        What `write` returns.

    Raises:
        OSError: the disk is full. Whatever `write` or `announce` raises, `folder` does not change then.
    """
    is_new = not folder.exists()
    # Inside, because only there a rename is certain to stay on the file system.
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        result = write(partial)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in paths:
            sync_file(path)
        names = [path.relative_to(partial).as_posix() for path in paths]
        removed = list(announce(names))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    _move(partial, folder, names=names, removed=removed)
    shutil.rmtree(partial)
    return result


def _move(partial: Path, folder: Path, *, names: list[str], removed: list[str]) -> None:
    last = [name for name in names if Path(name).name in _READ_FIRST]
    for name in (*(name for name in removed if Path(name).name in _READ_FIRST), *last, *removed):
        (folder / name).unlink(missing_ok=True)
    for name in (*(name for name in names if name not in last), *last):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    for changed in {(folder / name).parent for name in names}:
        sync_folder(changed)
