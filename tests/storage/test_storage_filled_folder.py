"""A folder of files is filled completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.storage.filled_folder import fill_folder


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def writer(text: str, names: tuple[str, ...] = ("config.json", "weights", "inner/weights")) -> Any:
    def write(place: Path) -> str:
        for name in names:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(text)
        return text

    return write


def test_files_are_replaced_and_those_of_the_user_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert fill_folder(folder, writer("old")) == "old"
    (folder / "mine").write_text("mine")
    fill_folder(folder, writer("new"))
    assert files(folder) == {"config.json": "new", "weights": "new", "inner/weights": "new", "mine": "mine"}


@pytest.mark.parametrize("existed", [False, True])
def test_an_error_while_writing_changes_nothing(existed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if existed:
        fill_folder(folder, writer("old"))
    before = files(folder) if existed else None

    def fails(place: Path) -> None:
        (place / "config.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_folder(folder, fails)
    assert (files(folder) if folder.exists() else None) == before


def test_no_model_of_two_halves_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each moment the folder has either no `config.json`, or files of one time only."""
    folder = tmp_path / "model"
    fill_folder(folder, writer("old"))
    seen: list[set[str]] = []
    for name in ("replace", "unlink"):
        real = getattr(os, name)

        def watched(*arguments: Any, real: Any = real, **more: Any) -> Any:
            found = {name: text for name, text in files(folder).items() if not name.startswith(".partial")}
            if "config.json" in found:
                seen.append(set(found.values()))
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, watched)
    fill_folder(folder, writer("new"))
    assert seen
    assert all(len(times) == 1 for times in seen)
    assert set(files(folder).values()) == {"new"}


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / ".partial").mkdir(parents=True)
    (folder / ".partial" / "left over").write_text("old")
    fill_folder(folder, writer("new", ("config.json",)))
    assert files(folder) == {"config.json": "new"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_all_files_follow_the_umask_whoever_wrote_them(umask: int, mode: int, tmp_path: Path) -> None:
    def write(place: Path) -> None:
        writer("text")(place)
        (place / "weights").chmod(0o600)  # as safetensors leaves it

    before = os.umask(umask)
    try:
        fill_folder(tmp_path / "model", write)
    finally:
        os.umask(before)
    names = ("config.json", "weights", "inner/weights")
    assert {(tmp_path / "model" / name).stat().st_mode & 0o777 for name in names} == {mode}
    assert set(files(tmp_path / "model")) == set(names)
