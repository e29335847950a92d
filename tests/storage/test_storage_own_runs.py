"""A configuration that the user has run is known again, by its text and by nothing in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.storage.own_runs import is_own_run, own_runs_file, remember_run


def test_own_runs_are_known_by_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert not is_own_run("a: 1\n")
    for text in ("a: 1\n", "b: 1\n", "a: 1\n"):
        remember_run(text)
    assert is_own_run("a: 1\n")
    assert is_own_run("b: 1\n")
    assert not is_own_run("a: 1")
    path = own_runs_file()
    assert path is not None
    assert len(path.read_text(encoding="ascii").splitlines()) == 2
    assert path.stat().st_mode & 0o077 == 0


def test_a_user_without_a_place_to_write_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember_run("a: 1\n")
    assert not is_own_run("a: 1\n")
