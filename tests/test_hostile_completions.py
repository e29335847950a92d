"""Ten thousand hostile completions: nothing is executed, nothing takes long, and the page stays whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import MARKER, hostile_texts
from rich.cells import cell_len
from rich.console import Console

from ippo_lightning.callbacks.completions_table import (
    COLUMNS,
    chosen_rows,
    markdown_table,
    terminal_table,
    write_parquet,
)
from ippo_lightning.errors import UserError
from ippo_lightning.metrics import LabelFractions, ReasoningMetrics
from ippo_lightning.metrics.labels import MAX_LABELS
from ippo_lightning.report import report_of
from ippo_lightning.rewards import grade_reward
from ippo_lightning.storage.untrusted_text import cut, visible_text
from ippo_lightning.tasks import MAX_LABEL_LENGTH, call_grader, grade_arithmetic, grade_gsm8k, gsm8k_answer

LONGEST_CALL = 1.0  # seconds
EXAMPLE = {"answer": "12", "terms": [7, 5], "question": "7+5?"}
executed: list[str] = []


def watch(event: str, arguments: Any) -> None:
    """Note what runs code or starts a process; hooks of this kind stay for the life of the process."""
    if watching and event in {"exec", "compile", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"}:
        executed.append(f"{event} {str(arguments)[:200]}")


watching = False
sys.addaudithook(watch)


@pytest.fixture
def nothing_runs() -> Iterator[None]:
    """Fails when text of a completion is compiled, executed or handed to a shell."""
    global watching
    executed.clear()
    watching = True
    yield
    watching = False
    assert not [entry for entry in executed if MARKER in entry or "9**9" in entry]
    assert not [entry for entry in executed if entry.startswith(("os.", "subprocess"))]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(hostile_texts())


def label_of(text: str) -> str:
    """Use a text as a label, as a careless grader might: it is a label, or one line for the user."""
    try:
        return str(call_grader(lambda prompt, response, example: response, "7+5?", text, EXAMPLE).label)
    except UserError as error:
        return str(error)


CALLS = {
    "grade_arithmetic": lambda text: grade_arithmetic("7+5?", text, EXAMPLE),
    "grade_gsm8k": lambda text: grade_gsm8k("What is 7+5?", text, EXAMPLE),
    "gsm8k_answer": gsm8k_answer,
    "reward by grade_arithmetic": lambda text: grade_reward(grade_arithmetic)(["7+5?"], [text], [EXAMPLE]),
    "reward by grade_gsm8k": lambda text: grade_reward(grade_gsm8k)(["7+5?"], [text], [EXAMPLE]),
    "a label that a grader copied from the text": label_of,
    "visible_text": visible_text,
    "markdown": lambda text: markdown_table([[text[:120], text[:120], "x", 1.0, None, 0.5, True]]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("nothing_runs")
def test_no_call_runs_a_text_or_takes_long(name: str, texts: list[str]) -> None:
    for text in texts:
        taken = seconds(CALLS[name], text)
        if taken >= LONGEST_CALL:  # a pause of a busy machine, or of this text?
            taken = min(taken, *(seconds(CALLS[name], text) for _ in range(3)))
        assert taken < LONGEST_CALL, text[:100]


def seconds(call: Any, text: str) -> float:
    start = time.perf_counter()
    call(text)
    return time.perf_counter() - start


def test_a_text_as_a_label_becomes_short_names_of_few_metrics(texts: list[str]) -> None:
    found = [label_of(text) for text in texts]
    assert all(line.isprintable() and len(line) < 300 for line in found)
    metrics = LabelFractions()
    metrics.update([line[:MAX_LABEL_LENGTH] for line in found])
    assert len(metrics.compute()) == MAX_LABELS


@pytest.mark.usefixtures("nothing_runs")
def test_metrics_take_whatever_the_grader_returns(texts: list[str]) -> None:
    metrics = ReasoningMetrics(k=2)
    grades = [grade_arithmetic("7+5?", text, EXAMPLE) for text in texts]
    metrics.update([list(pair) for pair in zip(grades[::2], grades[1::2], strict=True)], references=["12"] * 5000)
    assert 0 <= metrics.compute()["exact_match"] <= 1


def rows(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "iteration": number // 1000,
            "prompt": text[:2000],
            "response": text[:2000],
            "label": grade_arithmetic("7+5?", text, EXAMPLE).label.value,
            "reward": float(number % 2),
            "advantage": 0.1,
            "score": float(number % 7 - 3),
            "weight": float(number % 3),
            "kept": bool(number % 3),
        }
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("nothing_runs")
def test_tables_fit_and_contain_no_control_character(texts: list[str], every: int) -> None:
    chosen = rows(texts)[::every]
    for start in range(0, len(chosen), 100):
        console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
        console.print(terminal_table(chosen[start : start + 100], iteration=0))
        printed = console.export_text()
        assert max(map(cell_len, printed.splitlines())) <= 80
        assert not [character for character in printed if ord(character) < 32 and character != "\n"]
        assert "\u202e" not in printed


@pytest.mark.usefixtures("nothing_runs")
def test_parquet_holds_every_text(texts: list[str], tmp_path: Path) -> None:
    from pyarrow import parquet

    every = rows(texts)
    write_parquet(every, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == len(texts)
    assert set(COLUMNS) <= set(table.column_names)
    plain = next(place for place, row in enumerate(every) if "<script>" in row["response"])
    assert table["response"][plain].as_py() == every[plain]["response"]


class Page(HTMLParser):
    """Notes whatever could run, and whether elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            is_outside = name in ("src", "href") and not str(value).startswith(("data:image/png;base64,", "#"))
            if name.startswith("on") or is_outside:
                self.active.append(f"{tag} {name}={str(value)[:50]}")
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link"):
            self.active.append(tag)
        if tag not in ("meta", "img", "br", "hr", "link", "col", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def page(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose every text is hostile, its name and settings too."""
    run = tmp_path_factory.mktemp("hostile") / "run<b>x"
    run.mkdir()
    history = [
        {"iteration": number, "update/kept_fraction": 0.5, "time/iteration_seconds": 1.0} for number in range(10)
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (run / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(texts)))
    (run / "config.yaml").write_text("".join(texts[:40]), encoding="utf-8", errors="replace")
    start = time.perf_counter()
    written = report_of([run])
    assert time.perf_counter() - start < 60
    return written


def test_the_page_is_whole_and_nothing_in_it_is_active(page: Path) -> None:
    parsed = Page()
    parsed.feed(page.read_text(encoding="utf-8"))
    parsed.close()
    assert not parsed.active
    assert not parsed.open
    assert page.stat().st_size < 5_000_000


def test_a_browser_shows_the_page_and_runs_nothing(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium, and there is none here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>owned" not in done.stdout
    assert 'id="settings"' in done.stdout
    assert "document.title='owned'" in done.stdout.replace("&#39;", "'").replace("&quot;", '"')  # as text
    assert not Path(MARKER).exists()


def test_few_rows_are_chosen_from_the_ends(texts: list[str]) -> None:
    chosen = chosen_rows(rows(texts[:100]), 6)
    assert [chosen[0]["score"], chosen[-1]["score"]] == [3.0, -3.0]
    assert len(chosen) == 6
    assert cut("x" * 1000, 10).startswith("x" * 10 + "…")
