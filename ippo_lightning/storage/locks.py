"""A folder that one run at a time writes into."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """A lock on a folder; it ends with `release`, with this object, or with the process.

    Args:
        file: open and locked.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def release(self) -> None:
        """Unlock the folder."""
        self._file.close()

    @property
    def is_held(self) -> bool:
        """Whether the lock has not been released."""
        return not self._file.closed


_HELD: WeakValueDictionary[Path, FolderLock] = WeakValueDictionary()
"""Locks of this process: the system gives one process the same lock twice."""


_HELD_EARLY: dict[Path, FolderLock] = {}
"""Locks that wait for their owner, or for the end of the process."""


def hold_early(folder: Path) -> bool:
    """Lock a folder before its owner exists: the first `hold` of this process gets the lock. False if it is locked.

    Args:
        folder: exists.

    Raises:
        OSError: the lock's file cannot be written.
    """
    lock = hold(folder)
    if lock is not None:
        _HELD_EARLY[folder.resolve()] = lock
    return lock is not None


def hold(folder: Path) -> FolderLock | None:
    """Lock a folder against other processes, and against another owner in this one; None if it is locked already.

    Args:
        folder: exists.

    Raises:
        OSError: the lock's file cannot be written.
    """
    place = folder.resolve()
    if place in _HELD_EARLY:
        return _HELD_EARLY.pop(place)
    held = _HELD.get(place)
    if held is not None and held.is_held:
        return None
    file = (folder / LOCK).open("w")
    if fcntl is not None:
        try:
            # Of POSIX, and not `flock`: the lock is this process's own. Workers that it forks do not keep it after its
            # end, and the system drops it even after a kill; a file with a process id would stay.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                return None
            # a file system without locks, as some networks have
            warnings.warn(f"{folder} cannot be locked ({error.strerror}); begin no second run in it", stacklevel=3)
    lock = _HELD[place] = FolderLock(file)
    return lock
