"""The file of an evaluation's items: whole, of bounded size, and never trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hostile_texts import hostile_texts
from pyarrow import parquet

from ippo_lightning.run.items import LONGEST_ANSWER, LONGEST_TEXT, read_items, write_items


def item(response: str, **values: Any) -> Any:
    own = {"prompt_index": 0, "sample": 0, "prompt": "7+12-5?", "response": response, "correct": True}
    own |= {
        "label": "shortcut",
        "faithful": False,
        "answer": "14",
        "reference": "14",
        "reward": None,
        "reward_parts": {},
    }
    return own | {"response_tokens": 3, "truncated": False} | values


def test_what_is_written_is_read(tmp_path: Path) -> None:
    parts = {"right": 1.0, "short": float("-inf")}
    items = [
        item("#14"),
        item("", correct=None, label=None, faithful=None, answer=None, reward_parts=parts, reward=0.5),
    ]
    write_items(items, tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet", count=2) == items
    assert parquet.read_table(tmp_path / "items.parquet").num_rows == 2


def test_a_folder_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"pr\xffoj")
    folder.mkdir()
    write_items([item("a")], folder / "items.parquet")
    assert read_items(folder / "items.parquet", count=1) == [item("a")]


def test_hostile_responses_are_written_and_read(tmp_path: Path) -> None:
    texts = list(hostile_texts(1500))
    items = [item(text, answer=text, label=text[:10]) for text in texts]
    write_items(items, tmp_path / "items.parquet")
    found = read_items(tmp_path / "items.parquet", count=len(items))
    assert found is not None
    for one, text in zip(found, texts, strict=True):
        kept = text.encode("utf-8", errors="replace").decode("utf-8")  # half a character is no text
        assert one["response"][:LONGEST_TEXT] == kept[:LONGEST_TEXT]


def test_a_long_response_is_cut_and_says_so(tmp_path: Path) -> None:
    write_items([item("a" * 5_000_000, answer="9" * 5_000_000)], tmp_path / "items.parquet")
    found = read_items(tmp_path / "items.parquet", count=1)
    assert found is not None
    assert found[0]["response"] == "a" * LONGEST_TEXT + "… (+4,900,000 characters)"
    assert len(found[0]["answer"] or "") < LONGEST_ANSWER + 50


@pytest.mark.parametrize("fault", ["cut", "another number of rows", "another table", "no parquet"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_that_is_not_what_was_written_counts_as_missing(fault: str, tmp_path: Path) -> None:
    path, count = tmp_path / "items.parquet", 50
    write_items([item(f"#{number * 7919}") for number in range(count)], path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "another number of rows":
        count += 1
    elif fault == "another table":
        parquet.write_table(pyarrow.table({"response": ["#14"] * count}), path)
    else:
        path.write_bytes(b"{}")
    assert read_items(path, count=count) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_byte_changes_no_item(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    items = [item(f"#{number * 7919}") for number in range(50)]
    write_items(items, path)
    whole, found = path.read_bytes(), []
    for place in range(4, len(whole), 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        found.append(read_items(path, count=50))
    assert all(read is None or read == items for read in found)  # some bytes of a page's description have no effect
    assert sum(read is None for read in found) > len(found) / 5


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert read_items(tmp_path / "items.parquet", count=1) is None
