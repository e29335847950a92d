"""The folder of one evaluation of `ippo evaluate RUN`, which can be interrupted anywhere and goes on."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.run.items import Item, read_items, write_items
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.locks import FolderLock, hold
from ippo_lightning.storage.run_folder import (
    EVALUATION,
    EVALUATION_SETTINGS,
    ITEMS,
    PARTS,
    JsonObject,
    RunFolder,
)


def evaluation_name(settings: JsonObject, *, split: str, model: str) -> str:
    """Return the name of an evaluation's folder: readable, and another one for other settings.

    Args:
        settings: everything that the responses and their grades depend on, as JSON.
        split: of the prompts.
        model: a short word for the model; characters that a folder's name should not have are replaced.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8")).hexdigest()
    return f"{split}-{re.sub(r'[^A-Za-z0-9._]+', '_', model)[:40]}-{digest[:10]}"


class EvaluationFolder:
    """The files of one evaluation: a batch is a file as soon as it is done; at the end all are one file.

    Args:
        path: created by `begin`.
        sizes: items of each batch.
    """

    def __init__(self, path: Path, *, sizes: Sequence[int]) -> None:
        self.path = path
        self.sizes = sizes
        self._lock: FolderLock | None = None

    @property
    def items(self) -> Path:
        """The file of all items."""
        return self.path / ITEMS

    def begin(self, settings: JsonObject) -> None:
        """Create and lock the folder, or continue the evaluation in it.

        Args:
            settings: as for `evaluation_name`.

        Raises:
            UserError: the folder contains another evaluation, another process evaluates into it, or it cannot be
                written into.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path)
            if self._lock is None:
                raise UserError(f"output: another process evaluates into {self.path}; wait for it")
            self._check_settings(settings)
        except OSError as error:
            raise UserError(
                f"output: {self.path} cannot be written into ({error.strerror}); give another folder as output"
            ) from error

    def _check_settings(self, settings: JsonObject) -> None:
        path = self.path / EVALUATION_SETTINGS
        # Through JSON once: what was written as a tuple is read as a list.
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            differing = _difference(_read_json(path), wanted)
            if differing is not None:
                raise UserError(f"output: {self.path} contains another evaluation ({differing}); give another folder")
        elif self.items.exists() or (self.path / PARTS).exists():
            raise UserError(f"output: {self.path} contains files of another origin; give another folder")
        else:
            write_text_whole(path, json.dumps(wanted, indent=2) + "\n")

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def read(self) -> list[Item] | None:
        """Return all items, and remove the files of their batches; None if some are missing."""
        found = read_items(self.items, count=sum(self.sizes))
        if found is not None:  # a kill may have left a part of them
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
        return found

    def missing(self) -> list[int]:
        """Return the numbers of the batches that are not done."""
        return [number for number in range(len(self.sizes)) if self._part(number) is None]

    def write_part(self, number: int, items: Sequence[Item]) -> None:
        """Write the items of one batch.

        Args:
            number: of the batch.
            items: all of the batch.
        """
        write_items(items, self._part_path(number))

    def join(self) -> list[Item]:
        """Write all items into one file, remove those of the batches, and return the items.

        Raises:
            UserError: a batch is missing.
        """
        parts = [self._part(number) for number in range(len(self.sizes))]
        missing = [number for number, part in enumerate(parts) if part is None]
        if missing:
            path = self._part_path(missing[0])
            raise UserError(f"output: {path} is missing; all ranks must write into one folder, on a shared file system")
        write_items([item for part in parts if part is not None for item in part], self.items)
        # As they are stored, with cut texts: an evaluation that is only read again has the same numbers.
        found = self.read()
        assert found is not None, "written above"
        return found

    def write_numbers(self, content: JsonObject) -> None:
        """Write what the items come to, as JSON with a checksum.

        Args:
            content: anything that JSON has.
        """
        RunFolder(self.path).write(EVALUATION, content)

    def _part(self, number: int) -> list[Item] | None:
        return read_items(self._part_path(number), count=self.sizes[number])

    def _part_path(self, number: int) -> Path:
        return self.path / PARTS / f"part_{number:06d}.parquet"


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and not has_wrong_checksum(found) else {}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Return the first setting in which two differ, in words; None if they are equal."""
    for name in wanted:
        if found.get(name) != wanted[name]:
            one, other = found.get(name), wanted[name]
            if isinstance(one, Mapping) and isinstance(other, Mapping):
                return f"{name}.{_difference(one, other) or 'more settings'}"
            return f"{name}: {str(one)[:60]}, and now {str(other)[:60]}"
    return None if found.keys() == wanted.keys() else "more settings"
