"""A folder of files that belong together: written beside its place, forced to disk, and only then moved there."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
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
        _follow_umask(paths, partial)
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


def _follow_umask(paths: list[Path], folder: Path) -> None:
    """Give files the mode that new files get here: some writers, safetensors among them, make private ones."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in paths:
        # without a change that is needed, a file system that refuses chmod is no reason to fail
        if stat.S_IMODE(path.stat().st_mode) != mode:
            with contextlib.suppress(OSError):
                path.chmod(mode)


def _move(partial: Path, folder: Path, *, names: list[str], removed: list[str]) -> None:
    last = [name for name in names if Path(name).name in _READ_FIRST]
    for name in (*(name for name in removed if Path(name).name in _READ_FIRST), *last, *removed):
        (folder / name).unlink(missing_ok=True)
    for name in (*(name for name in names if name not in last), *last):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    for changed in {(folder / name).parent for name in names}:
        sync_folder(changed)
