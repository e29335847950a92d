"""A folder is held by one process; a file system without locks is no reason to refuse a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.storage import locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_a_warning(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", unable)
    with pytest.warns(UserWarning, match="cannot be locked .*; begin no second run in it"):
        assert locks.hold(tmp_path)
    locks.release(tmp_path)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_folder_that_another_process_holds_is_not_held(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", held)
    assert not locks.hold(tmp_path)
