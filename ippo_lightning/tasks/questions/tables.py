"""Rows of files, folders, saved data sets and the Hub, each with the place that a message can name."""

from __future__ import annotations

import csv
import difflib
import glob
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.hub_rows import hub_rows, is_saved, one_line, saved_rows
from ippo_lightning.tasks.json_lines import json_lines
from ippo_lightning.tasks.questions.sources import Source

PlacedRow = tuple[str, Mapping[str, Any]]
"""Where a row stands, and its cells by column."""
MAX_JSON_BYTES = 1 << 30
"""A `.json` file is parsed as a whole, so a larger one is refused; `.jsonl` has no such limit."""


def table_rows(source: Source, *, field: str) -> Iterator[PlacedRow]:
    """Yield the rows of a source in their order, at most `num_rows`.

    Args:
        source: see `Source`.
        field: the user's setting, for messages.

    Raises:
        UserError: there is no such data, it cannot be read, or a row is no mapping; the message names file and line.
    """
    for place, row in islice(_all_rows(source, field), source.num_rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{place}: {type(row).__name__}; expected an object with the columns as keys")
        yield place, row


def is_download(source: Source, *, field: str = "task.path") -> bool:
    """Return whether a source is on the Hub, and is copied to this machine.

    Args:
        source: see `Source`.
        field: the user's setting, for messages.

    Raises:
        UserError: the path looks like a file or folder and does not exist.
    """
    if source.streaming or is_saved(source.path):
        return False
    return data_files(source.path, source.split, field=field) is None


def data_files(path: str, split: str | None, *, field: str = "task.path") -> list[Path] | None:
    """Return the files behind a path, or None for an id on the Hub.

    Args:
        path: a file, a pattern with `*`, a folder, or an id.
        split: beginning of the names of a folder's files.
        field: the user's setting, for messages.

    Raises:
        UserError: the path looks like a file or a folder and does not exist, or has no file that can be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _files_of(place, split, field)
    if any(sign in path for sign in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(place)))
        if not found:
            raise UserError(f"{field}: no file fits {path!r}; expected at least one")
        return [_readable(file, field) for file in found]
    if place.is_file():
        return [_readable(place, field)]
    if place.suffix in READERS or path.startswith((".", "/", "~")) or path.count("/") > 1:
        key = field if field.endswith(".path") else f"{field}.path"
        raise UserError(f"{key}: {path!r} does not exist; expected a file, a folder or a Hub id{_near_data(place)}")
    return None


def _near_data(missing: Path) -> str:
    """Return the data file or folder beside a missing one that was probably meant, as the end of a message."""
    if not missing.parent.is_dir():
        return ""
    beside = sorted(str(path) for path in missing.parent.iterdir() if path.suffix in READERS or path.is_dir())
    near = difflib.get_close_matches(str(missing), beside, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _readable(file: Path, field: str) -> Path:
    if file.suffix not in READERS:
        raise UserError(f"{field}: {str(file)!r} ends with {file.suffix!r}; expected one of {', '.join(READERS)}")
    return file


def _files_of(folder: Path, split: str | None, field: str) -> list[Path]:
    """Return the files of a folder whose names begin with the split; without a split, its only file."""
    # the Hub's data sets have their files in `data/`, and a copy of one looks alike
    places = sorted(file for part in (folder, folder / "data") for file in part.glob("*") if file.suffix in READERS)
    names = ", ".join(file.name for file in places[:5]) or "none"
    if split is None:
        if len(places) != 1:
            raise UserError(
                f"{field}: {str(folder)!r} has {len(places)} data files ({names}); expected a path or split"
            )
        return places
    found = [file for file in places if file.stem == split or file.name.startswith((f"{split}.", f"{split}-"))]
    if not found:
        raise UserError(f"{field}: {str(folder)!r} has no file of split {split!r}; it has {names}")
    return found


def _all_rows(source: Source, field: str) -> Iterator[tuple[str, Any]]:
    if is_saved(source.path):
        rows = saved_rows(source.path, split=source.split, field=field)
        yield from _numbered(rows, f"{field}: {source.path}")
        return
    files = data_files(source.path, source.split, field=field)
    for file in files or ():
        yield from READERS[file.suffix](file, source.column_names, field)
    if files is None:
        yield from _from_hub(source, field)


def _from_hub(source: Source, field: str) -> Iterator[tuple[str, Any]]:
    split = source.split or "train"
    for name in source.config_names:
        rows = hub_rows(
            source.path,
            split=split,
            config_name=name,
            revision=source.revision,
            streaming=source.streaming,
            field=field,
            kind="a file or folder",
        )
        yield from _numbered(rows, f"{field}: {' '.join(filter(None, (source.path, name, split)))}")


def _numbered(rows: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield rows with their numbers; an error of the library on the way, such as a lost connection, is one line."""
    number, stream = 0, iter(rows)
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:
            raise UserError(f"{where}, row {number}: cannot be read: {one_line(error)}") from error
        yield f"{where}, row {number}", row
        number += 1


# --- files ---------------------------------------------------------------------------------------------------


def _json_rows(file: Path, names: list[str] | None, field: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of one JSON list."""
    where = f"{field}: {file}"
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{where}: more than {MAX_JSON_BYTES} bytes; expected one object per line, in a .jsonl file")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({one_line(error)}); one object per line is a .jsonl file") from error
    if not isinstance(content, list):
        raise UserError(f"{where}: {type(content).__name__}; expected a list of objects")
    yield from _numbered(content, where)


def _json_lines(file: Path, names: list[str] | None, field: str) -> Iterator[tuple[str, Any]]:
    return json_lines(file, field=field)


def _separated_rows(file: Path, names: list[str] | None, field: str, *, options: Any) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a `.csv` or `.tsv` file; the first line has the names of the columns, or `names` has them."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table, start = csv.reader(stream, **options), 1
        while True:
            place = f"{field}: {file}, line {start}"
            try:
                cells = next(table)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{place}: cannot be read: {one_line(error)}") from error
            # a quoted cell may go over several lines; the row is named by its first one
            start = table.line_num + 1
            if names is None:
                names = _checked_names(cells, place)
            elif cells:
                yield place, _cells_by_name(cells, names, place)


def _checked_names(cells: list[str], place: str) -> list[str]:
    doubles = sorted({name for name in cells if cells.count(name) > 1})
    if doubles:
        raise UserError(f"{place}: the column {doubles[0]!r} comes twice; expected names that differ")
    return cells


def _cells_by_name(cells: list[str], names: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(names):
        raise UserError(f"{place}: {len(cells)} cells; expected {len(names)}, one per column")
    return dict(zip(names, cells, strict=True))


def _parquet_rows(file: Path, names: list[str] | None, field: str) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet  # imported here because it takes half a second, and other files do not need it

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: {file}: not parquet ({one_line(error)})") from error
    rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
    yield from _numbered(rows, f"{field}: {file}")


READERS: Mapping[str, Callable[[Path, list[str] | None, str], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": partial(_separated_rows, options={}),
    # a tab ends a cell, whatever quotes are in the text
    ".tsv": partial(_separated_rows, options={"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
    ".parquet": _parquet_rows,
}
"""How files are read, by the end of their names."""
