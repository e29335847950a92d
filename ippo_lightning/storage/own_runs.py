"""Which configurations this user has run here: a run folder with one of them is the user's own and not a stranger's.

A run's folder cannot state whose it is, because whoever sends it can write anything into it. So the mark is outside:
one line per configuration, its hash, in a file of the user.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ippo_lightning.storage.checksums import without_checksum_line

_MOST_READ = 64 * 1024 * 1024
"""Bytes read of the file: a million runs."""


def own_runs_file() -> Path | None:
    """Return the file, `ippo-lightning/own_runs.txt` in the user's folder of state; None for a user without a home."""
    given = os.environ.get("XDG_STATE_HOME")
    try:
        root = Path(given) if given else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return root / "ippo-lightning" / "own_runs.txt"


def remember_run(config: str) -> None:
    """Note that the user has run this configuration; without a place to write, nothing is noted.

    Args:
        config: the text of the run's configuration file.
    """
    path = own_runs_file()
    if path is None or is_own_run(config):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # one short write at the end of the file: runs that start at the same time do not mix their lines
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_line(config))
    except OSError:
        # a read-only home only means that the user is asked again
        return


def is_own_run(config: str) -> bool:
    """Return whether the user has run this configuration.

    Args:
        config: the text of a configuration file.
    """
    path = own_runs_file()
    try:
        if path is None or not path.is_file():
            return False
        with path.open("rb") as file:
            return _line(config) in file.read(_MOST_READ).splitlines(keepends=True)
    except OSError:
        return False


def _line(config: str) -> bytes:
    # the file has a last line with its checksum, which the configuration that is run does not have
    config = without_checksum_line(config)
    return hashlib.sha256(config.encode("utf-8", errors="surrogatepass")).hexdigest().encode("ascii") + b"\n"
