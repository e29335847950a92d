"""Folders in which nothing else may write: those of a run and of a model, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.storage import output_folders
from ippo_lightning.storage.output_folders import make_writable, refuse_run_folder, require_writable


@pytest.fixture
def run(tmp_path: Path) -> Path:
    files = ("config.yaml", "history.jsonl", "model/adapter/adapter_config.json", "checkpoints/last.ckpt")
    for name in (*files, "export/config.json", "export/model.safetensors", "evaluations/x/settings.json"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize("place", [".", "model", "model/adapter", "model/new/deeper", "checkpoints", "csv", "export"])
def test_a_place_that_a_run_or_a_model_needs_is_refused(place: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (run / place, run / "model" / ".." / place):
        with pytest.raises(UserError, match=r"^output: .*; name another folder$"):
            refuse_run_folder("output", folder)
    monkeypatch.chdir(run)
    with pytest.raises(UserError):
        refuse_run_folder("output", Path(place))


def test_other_places_are_free(run: Path, tmp_path: Path) -> None:
    for place in ("evaluations/x", "mine", "report", "../new", "export/numbers"):
        refuse_run_folder("output", run / place)
    # Files with these names need not be those of a run or a model.
    (tmp_path / "project/model").mkdir(parents=True)
    (tmp_path / "project/config.yaml").touch()
    (tmp_path / "project/config.json").touch()
    refuse_run_folder("output", tmp_path / "project/model/numbers")


def test_a_folder_is_made_and_tried_without_leaving_a_file(tmp_path: Path) -> None:
    make_writable("output", tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_check_before_other_checks_leaves_nothing(tmp_path: Path) -> None:
    require_writable("output", tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [make_writable, require_writable])
def test_a_place_that_cannot_be_written_into_is_one_line(
    check: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"output: .* cannot be written into \(Not a directory\); name another .* --output"
    ):
        check("output", tmp_path / "file" / "folder")

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # a user without rights; the tests may run as one who has all
    monkeypatch.setattr(output_folders, "TemporaryFile", refused)
    with pytest.raises(UserError, match=r"output: .* cannot be written into \(Permission denied\)"):
        check("output", tmp_path)
