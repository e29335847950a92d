"""Rows through the `datasets` library: a data set on the Hub, or a folder that the library has saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes, of a data set with splits and of one split."""


def hub_rows(
    path: str,
    *,
    split: str,
    config_name: str | None,
    revision: str | None,
    streaming: bool = False,
    field: str = "task.path",
    kind: str = "a folder",
) -> Iterable[Any]:
    """Return the rows of one split of a data set on the Hub.

    Args:
        path: its id.
        split: its name on the Hub.
        config_name: of the data set on the Hub.
        revision: branch, tag or commit; None for the newest.
        streaming: rows are read as they are needed, and nothing is kept on the disk.
        field: the user's setting, for messages.
        kind: what else `path` could have been, for messages.

    Raises:
        UserError: there is no network, no such data set, or no such split.
    """
    import datasets  # imported here because it takes a second, and a folder does not need it

    try:
        with _silent_progress():
            rows: Iterable[Any] = datasets.load_dataset(
                path, config_name, split=split, revision=revision, streaming=streaming
            )
    except Exception as error:  # no network, no such data set, no such split: one line for all of them
        raise UserError(f"{field}: {path!r} is not {kind}, and the Hub gave no data set: {one_line(error)}") from error
    return rows


def is_saved(path: str) -> bool:
    """Return whether a path is a folder that `datasets` has saved with `save_to_disk`."""
    folder = Path(path).expanduser()
    return any((folder / name).is_file() for name in _SAVED)


def saved_rows(path: str, *, split: str | None, field: str) -> Iterable[Any]:
    """Return the rows of a folder that `save_to_disk` wrote.

    Args:
        path: see `is_saved`.
        split: its name, if the folder has several.
        field: the user's setting, for messages.

    Raises:
        UserError: the folder is damaged, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(Path(path).expanduser()))
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise UserError(f"{field}: {path!r} cannot be loaded by datasets: {one_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    name = split or "train"
    if name not in loaded:
        raise UserError(f"{field}: {path!r} has no split {name!r}; expected one of {', '.join(map(str, loaded))}")
    rows: Iterable[Any] = loaded[name]
    return rows


def one_line(error: Exception) -> str:
    """Return the kind and the beginning of the message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _silent_progress() -> Iterator[None]:
    """Switch the library's progress bars off, and restore its setting after."""
    import datasets

    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()
