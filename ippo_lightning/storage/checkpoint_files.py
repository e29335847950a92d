"""The files in a run's folder of checkpoints: which iteration each one is of, and which is the newest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ippo_lightning.storage.checksums import label_of, write_checked
from ippo_lightning.storage.run_folder import BEST_CHECKPOINT, CHECKPOINT_PATTERN, LAST_CHECKPOINT

_LABEL = "ippo-lightning checkpoint of iteration "


def write_checkpoint_file(path: Path, write: Callable[[IO[bytes]], object], *, iteration: int) -> None:
    """Write a checkpoint atomically, with its checksum and its iteration in the last line.

    Args:
        path: see `write_whole`.
        write: writes the content to the open file.
        iteration: iterations done.

    Raises:
        OSError: it cannot be written; an older file of that name does not change.
    """
    write_checked(path, write, label=f"{_LABEL}{iteration}")


def iteration_of(path: Path) -> int | None:
    """Return the iterations done before a checkpoint, from its name or its last line; None if neither states them.

    Args:
        path: of a checkpoint, complete or not.
    """
    # The name first: it is there even if the end of the file is not. `last.ckpt` and `best.ckpt` state no iteration.
    found = re.fullmatch(r"iteration_(\d+)\.ckpt", path.name)
    found = found or re.fullmatch(re.escape(_LABEL) + r"(\d+)", label_of(path) or "")
    return int(found[1]) if found else None


def is_finished(path: Path) -> bool:
    """Return whether a checkpoint has its last line, as all that are not cut off. It does not read the rest.

    Args:
        path: of a checkpoint.
    """
    return (label_of(path) or "").startswith(_LABEL)


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder by iteration, complete or not, each file under one name.

    Args:
        folder: of a run's checkpoints; it may be missing. Files that state no iteration come last.
    """
    distinct: dict[tuple[int, int], Path] = {}
    names = [*sorted(folder.glob(CHECKPOINT_PATTERN)), folder / LAST_CHECKPOINT, folder / BEST_CHECKPOINT]
    for path in names:
        if path.is_file():
            status = path.stat()
            # `last.ckpt` usually is a second name of a file that is listed already.
            distinct.setdefault((status.st_dev, status.st_ino), path)
    iterations = {path: iteration_of(path) for path in distinct.values()}
    return sorted(iterations, key=lambda path: -1 if (found := iterations[path]) is None else found, reverse=True)
