"""Files of every kind give the same rows, and what is wrong with one is named by its file and line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Columns, Source
from ippo_lightning.tasks.questions.tables import data_files, is_download, table_rows

ROWS = [{"q": "1+1?", "a": "2"}, {"q": 'He said "two,\nor 2020-01-01"', "a": "é"}]
COLUMNS = Columns(prompt="q")


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())).replace("\n", " ") for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return path


def rows_of(path: Path | str, **settings: Any) -> list[Any]:
    return list(table_rows(Source(path=str(path), columns=COLUMNS, **settings), field="task.train"))


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("jsonl", ["line 1", "line 3"]),
        ("json", ["row 0", "row 1"]),
        ("csv", ["line 2", "line 3"]),
        ("tsv", ["line 2", "line 3"]),
        ("parquet", ["row 0", "row 1"]),
    ],
)
def test_a_file_of_each_kind_gives_its_rows_with_their_places(kind: str, places: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / f"file.{kind}")
    found = rows_of(path)
    expected = [{**row, "q": row["q"].replace("\n", " ")} for row in ROWS] if kind == "tsv" else ROWS
    assert [row for _, row in found] == expected
    assert [re.split(r", ", place)[-1] for place, _ in found] == places
    assert all(place.startswith(f"task.train: {path}") for place, _ in found)
    assert rows_of(path, num_rows=1) == found[:1]


def test_a_saved_data_set_gives_the_rows_of_its_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path / "two")
    assert [row for _, row in rows_of(tmp_path / "one")] == ROWS
    assert [row for _, row in rows_of(tmp_path / "two")] == ROWS
    assert [row for _, row in rows_of(tmp_path / "two", split="test")] == ROWS[1:]
    with pytest.raises(UserError, match=r"has no split 'dev'; expected one of train, test"):
        rows_of(tmp_path / "two", split="dev")


def test_a_folder_and_a_pattern_give_the_rows_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path / "data" / f"{name}.parquet")
    assert len(rows_of(tmp_path, split="train")) == 4
    assert len(rows_of(tmp_path, split="test")) == 2
    assert len(rows_of(f"{tmp_path}/data/t*.parquet")) == 6
    with pytest.raises(UserError, match=r"has 3 data files .*; expected a path or split"):
        rows_of(tmp_path)
    with pytest.raises(UserError, match=r"has no file of split 'dev'"):
        rows_of(tmp_path, split="dev")
    with pytest.raises(UserError, match=r"no file fits"):
        rows_of(f"{tmp_path}/x*.jsonl")


def test_names_of_columns_can_be_given_where_the_first_line_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("1+1?,2\n3+3?,6\n", encoding="utf-8")
    found = rows_of(tmp_path / "bare.csv", column_names=["q", "a"])
    assert [row for _, row in found] == [{"q": "1+1?", "a": "2"}, {"q": "3+3?", "a": "6"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{}\n{"a":', "a.jsonl, line 2: not JSON (Expecting value at column 6)"),
        ("a.jsonl", b"3\n", "a.jsonl, line 1: int; expected an object"),
        ("a.json", b"{}", "a.json: dict; expected a list of objects"),
        ("a.json", b"[1]", "a.json, row 0: int; expected an object"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.csv", b"q,a\n1,2\n3\n", "a.csv, line 3: 1 cells; expected 2"),
        ("a.csv", b"q,q\n1,2\n", "a.csv, line 1: the column 'q' comes twice"),
        ("a.csv", b"q,a\n1,\xff\n", "a.csv, line 1: cannot be read: UnicodeDecodeError"),
        ("a.csv", b"q,a\n1," + b"x" * 200_000 + b"\n", "a.csv, line 2: cannot be read: Error"),
        ("a.parquet", b"PAR1", "a.parquet: not parquet"),
        ("a.xlsx", b"", "ends with '.xlsx'; expected one of .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        rows_of(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("task.train: ")


@pytest.mark.parametrize("path", ["./missing", "/missing/file", "missing.jsonl", "a/b/c", "~/missing.csv"])
def test_a_missing_file_is_named_and_the_hub_is_not_asked(path: str) -> None:
    with pytest.raises(UserError, match=r"does not exist; expected a file, a folder or a Hub id"):
        data_files(path, None)


def test_a_missing_file_is_named_with_its_key_and_the_nearest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "problems.jsonl")
    with pytest.raises(UserError, match=r"^task\.train\.path: .*; did you mean 'problems\.jsonl'\?$"):
        data_files("problem.jsonl", None, field="task.train")


def test_only_a_data_set_of_the_hub_is_a_download(tmp_path: Path) -> None:
    assert is_download(Source(path="owner/name", columns=COLUMNS))
    assert not is_download(Source(path="owner/name", columns=COLUMNS, streaming=True))
    assert not is_download(Source(path=str(write(tmp_path / "a.jsonl")), columns=COLUMNS))


@pytest.mark.parametrize("streaming", [False, True])
def test_configurations_of_the_hub_come_one_after_the_other(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, asked = pytest.importorskip("datasets"), []

    def load(path: str, name: str, **settings: Any) -> list[dict[str, Any]]:
        asked.append((path, name, settings))
        return [{"q": f"{name}?"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = rows_of("owner/name", config_name=["one", "two"], streaming=streaming, revision="v1", split="dev")
    assert found == [
        ("task.train: owner/name one dev, row 0", {"q": "one?"}),
        ("task.train: owner/name two dev, row 0", {"q": "two?"}),
    ]
    assert {json.dumps(settings) for _, _, settings in asked} == {
        json.dumps({"split": "dev", "revision": "v1", "streaming": streaming})
    }


def test_a_connection_that_is_lost_on_the_way_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load(*words: Any, **settings: Any) -> Any:
        yield {"q": "1"}
        raise ConnectionError("lost\nit")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"owner/name train, row 1: cannot be read: ConnectionError: lost it"):
        rows_of("owner/name", streaming=True)


def test_without_a_network_the_hub_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"'no/data' is not a file or folder, and the Hub gave no data set"):
        rows_of("no/data")
