"""The iterations of an intervention that are done: a line of JSON each, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ippo_lightning.analysis.intervention import Intervened
from ippo_lightning.storage.checksums import has_wrong_checksum, with_checksum
from ippo_lightning.storage.run_folder import JsonObject, RunFolder

_LONGEST_FILE = 1 << 30
"""Bytes; a longer file was not written here."""
_FIELDS: Mapping[str, type] = {
    "iteration": int, "records": int, "negatives": int, "scores_of": str, "skipped": str, "steps": dict,
    "returns": dict,
}  # fmt: skip


class DoneRounds:
    """A file of finished iterations in the folder of an intervention; other settings have another file.

    Args:
        folder: of the intervention; it exists.
        settings: what the numbers depend on beside the kept iterations, as JSON.
    """

    def __init__(self, folder: Path, settings: JsonObject) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8")).hexdigest()
        self.folder, self.name = RunFolder(folder), f"rounds-{digest[:10]}.jsonl"

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder.path / self.name

    def read(self) -> dict[tuple[str, int], Intervened]:
        """Return what is done, by digest of the kept iteration's file and its number; damaged lines are left out."""
        if not self.path.is_file() or self.path.stat().st_size > _LONGEST_FILE:
            return {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        return dict(entry for line in lines if (entry := _entry(line)) is not None)

    def add(self, buffer: str, found: Intervened) -> None:
        """Append a line.

        Args:
            buffer: SHA-256 of the file of the kept iteration: of another run, or a repeated one, it is another.
            found: the outcome.

        Raises:
            OSError: the disk is full.
        """
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # what a kill has cut off stays a line of its own
        self.folder.append(self.name, with_checksum({"buffer": buffer, **asdict(found)}))


def _entry(line: str) -> tuple[tuple[str, int], Intervened] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "sha256" not in content or has_wrong_checksum(content):
        return None
    if any(type(content.get(name)) is not kind for name, kind in _FIELDS.items()) or not _are_usable(content):
        return None
    return (str(content.get("buffer")), content["iteration"]), Intervened(**{name: content[name] for name in _FIELDS})


def _are_usable(content: Mapping[str, Any]) -> bool:
    """Return whether the returns are finite numbers [trainings, episodes], of the same episodes for all ways."""
    try:
        arrays = [np.array(values, dtype=np.float64) for values in content["returns"].values()]
    except (ValueError, TypeError):
        return False
    return all(one.ndim == 2 and np.isfinite(one).all() and one.shape[1] == arrays[0].shape[1] for one in arrays)
