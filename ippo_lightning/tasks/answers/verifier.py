"""The process that compares answers: started at the first question, used for all, started again after a time limit."""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from ippo_lightning.errors import UserError

TIMEOUT = 5.0
"""Seconds of processor time for one comparison; an answer that takes longer is a wrong one."""
PATIENCE = 10.0 if hasattr(signal, "setitimer") else 1.0
"""How many times as long the parent waits by the clock; without timers of processor time it alone watches."""
START_SECONDS = 120.0
"""Seconds for the start, in which sympy is imported; a busy machine needs many."""

# Isolated: Python would put the folder of the program in front, whose files have the names of other modules. Then the
# packages are those that this process sees.
_PROGRAM = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
"""
_WORKER = Path(__file__).with_name("worker.py")


class _LateError(Exception):
    """No answer in time, or none at all."""


class Verifier:
    """A process that compares answers with math-verify, and is replaced if an answer makes it hang or end.

    Args:
        timeout: seconds of processor time for one comparison.
    """

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.starts = 0
        """How many processes were started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def are_equal(self, gold: str, given: str) -> bool:
        """Return whether two answers are the same; False if the comparison takes too long, or too much memory.

        Args:
            gold: the right answer; it decides how an equation or a set is read.
            given: the answer of a response.

        Raises:
            UserError: math-verify is not installed.
        """
        with self._lock:
            self._ensure_started()
            question = {"gold": gold, "given": given, "seconds": self.timeout}
            try:
                return bool(self._ask(question, seconds=PATIENCE * self.timeout)["equal"])
            except _LateError:
                self.close()
                return False
            except BaseException:  # Ctrl-C, or the limit of a reward: its answer would be that of the next question
                self.close()
                raise

    def close(self) -> None:
        """End the process; the next question starts another one."""
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):  # what was not sent
                process.stdin.close()

    def _ensure_started(self) -> None:
        # A forked process has the pipes of its parent, and would take the parent's answers.
        if os.getpid() != self._owner:
            self._process, self._owner = None, os.getpid()
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self.starts += 1
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path), str(_WORKER)]
        # Not a shell, and no output of a library in the terminal. One thread: a comparison uses no more.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        # A thread, because not every system can wait for a pipe with a limit.
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            started = self._answer(START_SECONDS)
        except _LateError:
            self.close()
            raise UserError(
                f"math-verify: its process did not start within {START_SECONDS:g} seconds; check that "
                "`python -c 'import math_verify'` works"
            ) from None
        if "missing" in started:
            self.close()
            raise UserError(
                f"math-verify: {' '.join(str(started['missing']).split())[:120]}; comparing mathematical answers needs "
                "it: pip install math-verify"
            )

    def _ask(self, question: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            # At most a few kilobytes, so the pipe takes it at once.
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _LateError from error
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise _LateError from None
        if not line:  # the process has ended, for want of memory for example
            raise _LateError
        answer: dict[str, Any] = json.loads(line)
        return answer


def _read_lines(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on each line, and an empty one at the end."""
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


_SHARED = Verifier()
atexit.register(_SHARED.close)


# Samples to one prompt often have the same answer, and one that takes too long must not cost its time twice.
@lru_cache(maxsize=16384)
def are_equal(gold: str, given: str) -> bool:
    """Return whether two mathematical answers are the same, by the one process of this run; see `Verifier.are_equal`.

    Args:
        gold: the right answer.
        given: the answer of a response.
    """
    return _SHARED.are_equal(gold, given)
