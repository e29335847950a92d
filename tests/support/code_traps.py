"""A trap for code that must not run: a module that leaves a mark, and a watch on processes that leave one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.cli.main import EXIT_USER_ERROR, main

# a module of a stranger: it leaves a mark when it is imported, and another when anything in it is called
TRAP = """
from pathlib import Path
import os as alias

def mark(*_):
    (Path(__file__).parent / "HIT").touch()

mark()

def reward(prompts, responses, examples):
    mark()
    return [0.0] * len(prompts)

class Anything:
    def __init__(self, *_, **__):
        mark()
"""
SHELL = {"class_path": "os.system", "init_args": {"command": "touch HIT"}}
POLICY = "model.init_args.policy.init_args"
started: list[str] = []
watching = False


def watch(event: str, arguments: Any) -> None:
    """Note what starts a process with one of the marks; hooks of this kind stay for the life of the process."""
    if watching and event in {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"} and "HIT" in str(arguments):
        started.append(event)


sys.addaudithook(watch)


@contextmanager
def nothing_of_the_trap(folder: Path) -> Iterator[None]:
    """Fail when the trap is imported or called, or a process of its kind starts.

    Args:
        folder: the working folder; it gets the trap.
    """
    global watching
    (folder / "trap.py").write_text(TRAP, encoding="utf-8")
    started.clear()
    watching = True
    yield
    watching = False
    assert not started
    assert "trap" not in sys.modules
    assert not list(folder.rglob("HIT"))


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line; return its one line."""
    capsys.readouterr()
    assert main(words) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1, lines
    return lines[0]
