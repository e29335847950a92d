"""A folder that one process at a time writes into."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}
"""Lock files that this process keeps open, by folder. The lock ends when its file is closed."""


def hold(folder: Path) -> bool:
    """Lock a folder against other processes, until this one releases it or ends; return whether that succeeded.

    Args:
        folder: exists.
    """
    # This process may have locked the folder before; to close that file later would drop the lock of both.
    release(folder)
    if fcntl is None:
        return True
    held = (folder / LOCK).open("w")
    try:
        # Of POSIX, and not `flock`: the lock is this process's own. Workers that it forks do not keep it after its end,
        # and the system drops it even after a kill; a file with a process id would stay.
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            held.close()
            return False
        # a file system without locks, as some networks have
        warnings.warn(f"{folder} cannot be locked ({error.strerror}); begin no second run in it", stacklevel=3)
    _HELD[folder.resolve()] = held
    return True


def release(folder: Path) -> None:
    """Unlock a folder; nothing happens if this process has not locked it."""
    held = _HELD.pop(folder.resolve(), None)
    if held is not None:
        held.close()
