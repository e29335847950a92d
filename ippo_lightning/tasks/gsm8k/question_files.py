"""Questions and worked answers from a folder of `train.jsonl` and `test.jsonl`, or from the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.gsm8k.grading import gsm8k_answer
from ippo_lightning.tasks.hub_rows import hub_rows
from ippo_lightning.tasks.json_lines import check_text, json_lines

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
    rows = hub_rows(path, split=split, config_name=config_name, revision=revision)
    places = ((f"task.path: {path} {split}, record {number}", row) for number, row in enumerate(rows))
    return _checked(places, where=path)


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
    return _checked(json_lines(file), where=str(file))


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


def _checked(rows: Iterable[tuple[str, Any]], *, where: str) -> list[Record]:
    records = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{place}: {type(row).__name__}; expected an object with question and answer")
        for key in ("question", "answer"):
            check_text(row.get(key), key, place)
        if gsm8k_answer(row["answer"]) is None:
            raise UserError(f"{place}: answer has no number after ####")
        records.append({"question": row["question"], "answer": row["answer"]})
    if not records:
        raise UserError(f"task.path: {where} contains no records; expected at least one")
    return records
