"""An export replaces what an earlier export wrote, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ippo_lightning.cli.export_folder import check_output, fill_export
from ippo_lightning.errors import UserError


def export(folder: Path, text: str, *names: str, overwrite: bool = False) -> None:
    check_output(folder, overwrite=overwrite)

    def write(place: Path) -> None:
        for name in names:
            (place / name).write_text(text)

    fill_export(folder, write, origin={"iteration": 4})


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "export.json"}


def test_an_export_replaces_an_earlier_one_of_another_form(tmp_path: Path) -> None:
    export(tmp_path / "out", "merged", "README.md", "config.json", "model.safetensors")
    export(tmp_path / "out", "adapter", "README.md", "adapter_config.json")
    assert texts(tmp_path / "out") == {"README.md": "adapter", "adapter_config.json": "adapter"}
    listing = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (listing["iteration"], listing["complete"]) == (4, True)
    assert set(listing["files"]) == {"README.md", "adapter_config.json"}


def of_somebody(folder: Path) -> None:
    folder.mkdir()
    (folder / "README.md").write_text("mine")


def edited_since(folder: Path) -> None:
    export(folder, "old", "README.md", "config.json")
    (folder / "README.md").write_text("mine")


@pytest.mark.parametrize("prepare", [of_somebody, edited_since])
def test_a_card_of_the_user_is_not_replaced_unasked(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepare(folder)
    with pytest.raises(UserError, match=r"output: .* contains README.md, .*; name another folder, or set overwrite"):
        export(folder, "new", "README.md", "config.json")
    assert (folder / "README.md").read_text() == "mine"
    export(folder, "new", "README.md", "config.json", overwrite=True)
    assert texts(folder) == {"README.md": "new", "config.json": "new"}


def test_what_a_killed_export_left_is_not_the_users(tmp_path: Path) -> None:
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    (tmp_path / "out" / ".partial" / "README.md").touch()
    (tmp_path / "out" / "export.json.partial").touch()
    export(tmp_path / "out", "new", "README.md")
    assert texts(tmp_path / "out") == {"README.md": "new"}


def test_files_that_the_user_added_stay(tmp_path: Path) -> None:
    export(tmp_path / "out", "old", "README.md")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    export(tmp_path / "out", "new", "README.md")
    assert texts(tmp_path / "out") == {"README.md": "new", "notes.txt": "mine"}


def test_a_listing_cannot_make_an_export_remove_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("stays")
    (tmp_path / "out").mkdir()
    listing = {"complete": True, "files": {"../victim": "0"}}
    (tmp_path / "out" / "export.json").write_text(json.dumps(listing))
    with pytest.raises(UserError, match=r"contains export\.json"):
        export(tmp_path / "out", "new", "README.md")
    export(tmp_path / "out", "new", "README.md", overwrite=True)
    assert (tmp_path / "victim").read_text() == "stays"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out is a file; expected a folder"):
        check_output(tmp_path / "out", overwrite=True)
