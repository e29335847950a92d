"""Questions and worked answers from a folder of `train.jsonl` and `test.jsonl`, or from the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.gsm8k.grading import gsm8k_answer

MAX_LINE_BYTES = 1 << 20
"""A longer line is refused before it is parsed."""

Record = dict[str, str]
"""`question` and `answer`."""


def load_records(path: str, *, split: str, config_name: str | None, revision: str | None) -> list[Record]:
    """Return the questions and answers of one split.

    Args:
        path: a folder, or else a data set's id on the Hub.
        split: `train` or `test`.
        config_name: of the data set on the Hub.
        revision: branch, tag or commit of the data set on the Hub.

    Raises:
        UserError: the data does not exist, has no records, or a record lacks question, answer or `#### number`; the
            message names the line.
    """
    if is_folder(path):
        return read_folder(path, split=split)
    rows = _from_hub(path, split=split, config_name=config_name, revision=revision)
    return _checked(((f"{path} {split}, record {number}", row) for number, row in enumerate(rows)), where=path)


def read_folder(path: str, *, split: str) -> list[Record]:
    """Return the questions and answers of `<split>.jsonl` in a folder.

    Raises:
        UserError: the file does not exist, has no records or a malformed line; the message names the file and the line,
            counted from 1.
    """
    file = Path(path).expanduser() / f"{split}.jsonl"
    if not file.is_file():
        raise UserError(f"task.path: {file} does not exist; expected a folder with train.jsonl and test.jsonl")
    # not through `datasets`: its errors name no line, and it turns text that looks like a date into one
    return _checked(_lines(file), where=str(file))


def is_folder(path: str) -> bool:
    """Return whether `path` is a folder or looks like one rather than like an id on the Hub (`owner/name`).

    Raises:
        UserError: it looks like a folder that does not exist.
    """
    if path and Path(path).expanduser().is_dir():
        return True
    if not path or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(
            f"task.path: {path!r} is not a folder; expected one with train.jsonl and test.jsonl, or a Hub id"
        )
    return False


def _from_hub(path: str, *, split: str, config_name: str | None, revision: str | None) -> Iterable[Any]:
    import datasets  # imported here because it takes a second, and a folder does not need it

    try:
        with _silent_progress():
            rows: Iterable[Any] = datasets.load_dataset(path, config_name, split=split, revision=revision)
    except Exception as error:  # no network, no such data set, no such split: one line for all of them
        raise UserError(
            f"task.path: {path!r} is not a folder, and the Hub gave no data set: {_one_line(error)}"
        ) from error
    return rows


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each line that is not blank."""
    # bytes, so that the limit bounds memory whatever the characters are
    with file.open("rb") as stream:
        number = 0
        # readline with a limit, because one line may be as long as the file
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{file}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"task.path: {place}: more than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield place, _parse(line, place)


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"task.path: {place}: not JSON ({_one_line(error)})") from error


def _checked(rows: Iterable[tuple[str, Any]], *, where: str) -> list[Record]:
    records = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"task.path: {place}: {type(row).__name__}; expected an object with question and answer")
        for key in ("question", "answer"):
            _check_text(row.get(key), key, place)
        if gsm8k_answer(row["answer"]) is None:
            raise UserError(f"task.path: {place}: answer has no number after ####")
        records.append({"question": row["question"], "answer": row["answer"]})
    if not records:
        raise UserError(f"task.path: {where} contains no records; expected at least one")
    return records


def _check_text(value: Any, key: str, place: str) -> None:
    if not isinstance(value, str) or not value.strip():
        kind = "missing" if value is None else "empty" if value == "" else f"{type(value).__name__} {value!r:.40}"
        raise UserError(f"task.path: {place}: {key} is {kind}; expected text")
    # tokenizers raise an unreadable error at half a surrogate pair
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"task.path: {place}: {key} contains half a surrogate pair; expected valid Unicode")


def _one_line(error: Exception) -> str:
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
