"""Lines at a terminal break between words; in a log they stay whole."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from ippo_lightning.cli.main import main
from ippo_lightning.storage.terminal_lines import broken_between_words, terminal_width

TEXT = "ippo: error: model.reward: my_reward.right raised KeyError: 'topic' in my_reward.py, line 12; the keys are a, b"


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_each_line_fits_and_no_word_is_cut(width: int) -> None:
    broken = broken_between_words(TEXT, width)
    assert all(len(line) <= width for line in broken.splitlines())
    assert broken.split() == TEXT.split()


def test_a_path_stays_whole_and_lines_of_their_own_too() -> None:
    path = "/a-b/" + "long-name/" * 20
    assert path in broken_between_words(f"Report: {path} of the run", 40).replace("\n  ", " ").split()
    assert broken_between_words("one\n  two", 40) == "one\n  two"
    assert broken_between_words(TEXT, None) == broken_between_words(TEXT, 10) == TEXT


def test_a_file_has_no_width(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert terminal_width(file) is None


def test_an_error_at_a_terminal_of_eighty_columns_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import termios

    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["fit", "--task", "no_such_task"]) == 2
        terminal.flush()
        shown = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    assert len(shown) > 1
    assert all(len(line) <= 80 for line in shown)
    assert " ".join(line.strip() for line in shown).startswith("ippo: error: task: 'no_such_task' is not a file in")
