"""What the policy writes, in the terminal, in a parquet file and in the loggers."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import parquet
from rich.console import Console
from training_parts import tiny_loop, tiny_module

from ippo_lightning.callbacks import CompletionsTable
from ippo_lightning.callbacks.completions_table import (
    chosen_rows,
    completion_rows,
    log_table,
    markdown_table,
    terminal_table,
    write_parquet,
)
from ippo_lightning.errors import UserError


def row(**changes: Any) -> dict[str, Any]:
    return {
        "iteration": 0, "prompt": "p", "response": "r", "label": "faithful", "correct": True, "reward": 1.0,
        "advantage": 0.5, "score": 0.25, "weight": 1.0, "reasons": [], "factors": [], "kept": True,
    } | changes  # fmt: skip


def test_a_run_writes_all_episodes_of_its_iterations(tmp_path: Path) -> None:
    module = tiny_module()
    tiny_loop(tmp_path / "run", module, callbacks=[CompletionsTable(every_n_iterations=2)], max_iterations=3).fit()
    files = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert files == ["iteration_0000000.parquet", "iteration_0000002.parquet"]
    table = parquet.read_table(tmp_path / "run" / "completions" / files[0])
    assert table.num_rows == 16
    assert set(table.column("kept").to_pylist()) == {True}


def test_files_have_the_same_columns_whether_or_not_there_are_scores_and_labels(tmp_path: Path) -> None:
    write_parquet([row()], tmp_path / "scored.parquet")
    write_parquet([row(label=None, correct=None, score=None)], tmp_path / "plain.parquet")
    assert parquet.read_schema(tmp_path / "scored.parquet") == parquet.read_schema(tmp_path / "plain.parquet")


def test_half_a_character_does_not_stop_the_run(tmp_path: Path) -> None:
    write_parquet([row(response="\ud800", label="\udfff", reasons=["\ud800"], factors=[0.0])], tmp_path / "t.parquet")
    (written,) = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert (written["response"], written["label"], written["reasons"]) == ("?", "?", ["?"])


@pytest.mark.parametrize(("correct", "label"), [(True, "right"), (False, "wrong")])
def test_a_grader_without_labels_shows_right_and_wrong(
    monkeypatch: pytest.MonkeyPatch, correct: bool, label: str
) -> None:
    rows = [row(label=None, correct=correct, weight=0.0)]
    monkeypatch.setattr("ippo_lightning.callbacks.completions_table.episode_rows", lambda stats, grader: rows)
    (shown,) = completion_rows(SimpleNamespace(), grader=None)  # type: ignore[arg-type]
    assert (shown["label"], shown["kept"]) == (label, False)


def test_the_chosen_rows_reach_from_the_highest_to_the_lowest_score() -> None:
    rows = [row(score=float(score)) for score in (3, 1, 5, 2, 4)]
    assert [chosen["score"] for chosen in chosen_rows(rows, 3)] == [5.0, 3.0, 1.0]
    unscored = [row(score=None, reward=float(reward)) for reward in (0, 2, 1)]
    assert [chosen["reward"] for chosen in chosen_rows(unscored, 6)] == [2.0, 1.0, 0.0]


def test_the_terminal_table_fits_80_columns_and_shows_hidden_characters() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(terminal_table([row(response="\x1b[31m" + "long " * 50)], iteration=3))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "␛[31m" in shown


def test_tensorboard_gets_a_table_without_active_html() -> None:
    texts: list[str] = []
    experiment = SimpleNamespace(add_text=lambda name, text, step: texts.append(text))
    logger = type("TensorBoardLogger", (SimpleNamespace,), {})(experiment=experiment)
    log_table([logger, SimpleNamespace()], [row(response="<b>|`")], iteration=1)
    assert len(texts) == 1
    assert "&lt;b>&#124;&#96;" in texts[0]
    assert markdown_table([]) == texts[0].rsplit("\n", 1)[0]


@pytest.mark.parametrize("name", ["every_n_iterations", "num_rows"])
def test_settings_out_of_range_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=rf"^CompletionsTable\.{name}: 0 is out of range; expected an integer >= 1$"):
        CompletionsTable(**{name: 0})
