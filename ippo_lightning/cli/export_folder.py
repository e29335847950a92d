"""The folder of an exported model: what `ippo export` wrote into it, so that it replaces that and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.storage.atomic import PARTIAL, write_text_whole
from ippo_lightning.storage.checksums import digest_of
from ippo_lightning.storage.filled_folder import fill_folder

LISTING = "export.json"
"""States which checkpoint a model is of, and lists the files with their checksums."""
_EDITED_BY_HAND = 4 * 1024 * 1024
"""Bytes of the largest file that is looked through for changes of the user; weights are larger."""


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder in which an export would replace what it did not write.

    Args:
        folder: of the export; it may be missing.
        overwrite: whether the user allows it.

    Raises:
        UserError: the folder is a file, or contains other files than those of an earlier export, or changed ones.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file; expected a folder")
    if overwrite or not folder.is_dir():
        return
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    # left by an export that was killed: its files before they are moved, or its listing
    found = [name for name in found if not name.startswith(PARTIAL) and name != LISTING + PARTIAL]
    listing = _read_listing(folder)
    if listing is None:
        foreign = found
    elif listing.get("complete") is not True:  # killed while it moved its files
        foreign = []
    else:
        foreign = [name for name in found if _is_changed(folder / name, listing["files"].get(name))]
    if foreign:
        raise UserError(
            f"output: {folder} contains {foreign[0]}, which `ippo export` did not write or which was changed since; "
            "name another folder, or set overwrite to true"
        )


def fill_export(folder: Path, write: Callable[[Path], None], *, origin: Mapping[str, Any]) -> None:
    """Write an export, completely or not at all; other files of the folder stay.

    Args:
        folder: passed `check_output`.
        write: writes the files of the model into the folder that it gets.
        origin: what the listing states of the model.

    Raises:
        OSError: see `fill_folder`.
    """
    earlier = (_read_listing(folder) or {}).get("files", {})
    files: dict[str, str] = {}

    def announce(names: list[str]) -> list[str]:
        files.update({name: digest_of(folder / PARTIAL / name) for name in names})
        # Before the first file is moved: after a kill, the next export knows all of them as its own.
        _write_listing(folder, {**origin, "complete": False, "files": {**earlier, **files}})
        return [name for name in earlier if name not in files]

    fill_folder(folder, write, announce=announce)
    _write_listing(folder, {**origin, "complete": True, "files": files})


def _is_changed(path: Path, checksum: object) -> bool:
    if path.name == LISTING or checksum is None:
        return False  # a file of the user, which stays as it is
    return path.stat().st_size <= _EDITED_BY_HAND and digest_of(path) != checksum


def _read_listing(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_usable = isinstance(found, dict) and isinstance(found.get("files"), dict)
    # Names lead to files that are removed, so they must not lead out of the folder.
    return found if is_usable and all(_is_inside(name) for name in found["files"]) else None


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _write_listing(folder: Path, content: Mapping[str, Any]) -> None:
    write_text_whole(folder / LISTING, json.dumps(content, indent=2) + "\n")
