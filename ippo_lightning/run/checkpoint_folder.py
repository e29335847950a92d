"""The checkpoints of one run, and their derived names `last.ckpt` and `best.ckpt`."""

from __future__ import annotations

import warnings
from pathlib import Path

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.errors import UserError
from ippo_lightning.run.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from ippo_lightning.storage.atomic import PARTIAL, link_whole
from ippo_lightning.storage.checkpoint_files import iteration_of, newest_first
from ippo_lightning.storage.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINT_PATTERN,
    DAMAGED,
    LAST_CHECKPOINT,
    checkpoint_name,
)


class CheckpointFolder:
    """The checkpoints of one run: the newest few by iteration, the newest also as `last.ckpt`, and `best.ckpt`.

    The two other names are for users, and derived: a run that is killed between a checkpoint and its names corrects
    them when it resumes. Readers here find the newest checkpoint by its iteration, and the best one by what the newest
    knows.

    Args:
        path: created with the first checkpoint.
        keep_last: how many stay.
    """

    def __init__(self, path: Path, *, keep_last: int = 1) -> None:
        self.path = path
        self.keep_last = keep_last

    @property
    def last(self) -> Path:
        """Second name of the newest checkpoint."""
        return self.path / LAST_CHECKPOINT

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self.path / BEST_CHECKPOINT

    def read_newest(self) -> tuple[Path, Checkpoint]:
        """Return the newest whole checkpoint, under any name; one that cannot be read is skipped with a warning.

        Raises:
            UserError: no checkpoint can be read.
        """
        return self._first_whole(newest_first(self.path), wanted="one")

    def read_best(self) -> tuple[Path, Checkpoint]:
        """Return the checkpoint of the best evaluation that the newest whole checkpoint knows.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        newest, state = self.read_newest()
        best = state["best"]
        if not best.get("is_written"):
            raise UserError(
                f"checkpoint: {newest} knows no best evaluation (loop.best_metric); expected last or a path"
            )
        # One of an earlier version does not state its iteration; only its name tells what it is.
        found = [path for path in newest_first(self.path) if iteration_of(path) == best["iteration"]]
        found += [self.best] if self.best.is_file() and iteration_of(self.best) is None else []
        return self._first_whole(found, wanted=f"that of the best evaluation, of iteration {best['iteration']}")

    def _first_whole(self, paths: list[Path], *, wanted: str) -> tuple[Path, Checkpoint]:
        for path in paths[:-1]:
            state = _read_or_warn(path)
            if state is not None:
                return path, state
        # With no older one left, the error is what the user has to see.
        if paths:
            return paths[-1], read_checkpoint(paths[-1])
        raise UserError(f"checkpoint: {self.path} has none; expected {wanted} that `ippo fit` wrote")

    def read(self, name: str) -> tuple[Path, Checkpoint]:
        """Return a checkpoint by its name in this folder, or by its path.

        Args:
            name: `last`, `best`, or a path.

        Raises:
            UserError: it does not exist, or cannot be read.
        """
        known = {"last": self.read_newest, "best": self.read_best}.get(name)
        return known() if known is not None else read_named(Path(name))

    def write(self, state: Checkpoint) -> None:
        """Write a checkpoint and delete the oldest; only rank 0 writes.

        Args:
            state: see `checkpoint_state`.

        Raises:
            OSError: it cannot be written; older ones stay.
        """
        if rank() != 0:
            return
        path = self.path / checkpoint_name(state["progress"]["iteration"])
        write_checkpoint(state, path)
        # Before the oldest is deleted: it may have been the only one with the second name.
        self.derive_names(path, state)
        self._delete_oldest()

    def go_on_from(self, path: Path, state: Checkpoint) -> None:
        """Make the folder that of a run whose newest checkpoint is `path`; only rank 0 writes.

        Args:
            path: what `read_newest` returned.
            state: its content.
        """
        if rank() != 0:
            return
        own = self.path / checkpoint_name(state["progress"]["iteration"])
        # Newer ones cannot be read. Under their names, they would count as the newest, and whole ones be deleted.
        for newer in self.path.glob(CHECKPOINT_PATTERN):
            if newer.name > own.name:
                newer.replace(newer.with_name(newer.name + DAMAGED))
        if not own.exists() or not own.samefile(path):
            link_whole(path, own)
        self.derive_names(own, state)
        # A kill between the last checkpoint and this step left one too many, and there may be no further checkpoint.
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        for old in sorted(self.path.glob(CHECKPOINT_PATTERN), reverse=True)[self.keep_last :]:
            old.unlink(missing_ok=True)

    def derive_names(self, newest: Path, state: Checkpoint) -> None:
        """Let `last.ckpt` be the newest checkpoint, and `best.ckpt` that of the best evaluation.

        Args:
            newest: by its iteration.
            state: its content.
        """
        # Left by a run that was killed while it wrote.
        for left_over in self.path.glob("*" + PARTIAL):
            left_over.unlink(missing_ok=True)
        # Second names of the same file: they take no space, and stay when the first name is deleted.
        _link(newest, self.last)
        best = self.path / checkpoint_name(state["best"].get("iteration", 0))
        # If it is deleted already, `best.ckpt` is the only name that is left of it.
        if state["best"].get("is_written") and best.is_file():
            _link(best, self.best)


def _read_or_warn(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except UserError as error:
        warnings.warn(f"{error}; an older one is used", stacklevel=4)
        return None


def read_named(path: Path) -> tuple[Path, Checkpoint]:
    """Return a checkpoint by its path; a derived name stands for the checkpoint that it should be.

    Args:
        path: of a checkpoint. `last.ckpt` and `best.ckpt` may be those of a run that was killed before it renamed them.

    Raises:
        UserError: it does not exist, or cannot be read.
    """
    folder = CheckpointFolder(path.parent)
    is_derived = path.name in (LAST_CHECKPOINT, BEST_CHECKPOINT)
    # A copy of a single file, outside the folder of a run, is what it is.
    if not is_derived or not any(path.parent.glob(CHECKPOINT_PATTERN)):
        return path, read_checkpoint(path)
    return folder.read_newest() if path.name == LAST_CHECKPOINT else folder.read_best()


def _link(source: Path, path: Path) -> None:
    if not path.exists() or not path.samefile(source):
        link_whole(source, path)
