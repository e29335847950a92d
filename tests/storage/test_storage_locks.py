"""A folder is held by one run; a file system without locks is no reason to refuse a run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
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
        lock = locks.hold(tmp_path)
    assert lock is not None
    assert lock.is_held


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_folder_that_another_process_holds_is_not_held(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", held)
    assert locks.hold(tmp_path) is None


def is_free_for_another_process(folder: Path) -> bool:
    code = (
        f"from pathlib import Path; from ippo_lightning.storage.locks import hold; print(hold(Path({str(folder)!r})))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout != "None\n"


def test_a_second_owner_in_the_same_process_gets_no_lock_and_takes_none_away(tmp_path: Path) -> None:
    lock = locks.hold(tmp_path)
    assert lock is not None
    assert locks.hold(tmp_path) is None
    assert not is_free_for_another_process(tmp_path)
    lock.release()
    assert is_free_for_another_process(tmp_path)
    assert locks.hold(tmp_path) is not None


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    lock = locks.hold(tmp_path)
    assert lock is not None
    del lock
    assert is_free_for_another_process(tmp_path)


def test_a_lock_that_is_taken_early_goes_to_the_first_owner(tmp_path: Path) -> None:
    assert locks.hold_early(tmp_path)
    assert not is_free_for_another_process(tmp_path)
    lock = locks.hold(tmp_path)
    assert lock is not None
    assert locks.hold(tmp_path) is None
    assert not locks.hold_early(tmp_path)
    lock.release()
    assert is_free_for_another_process(tmp_path)
