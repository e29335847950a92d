"""The process that compares answers: hostile answers neither hang nor end the run, and none is evaluated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.answers import verifier, worker
from ippo_lightning.tasks.answers.verifier import Verifier


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest):
    """One process for the tests that do not end it: its start takes seconds."""
    request.getfixturevalue("math_verify")
    made = Verifier(timeout=1.0)
    yield made
    made.close()


def test_one_process_answers_all_questions(shared: Verifier) -> None:
    assert shared.are_equal("1/2", r"\frac{1}{2}")
    first = shared._process.pid
    assert not shared.are_equal("1/2", r"\frac{1}{3}")
    assert shared._process.pid == first


@pytest.mark.parametrize(
    "hostile",
    [
        "10^{10^{10}}",
        pytest.param("9!!!!!!!!!!!!", marks=pytest.mark.slow),
        pytest.param("2^{2^{2^{2^{2^{2}}}}}", marks=pytest.mark.slow),
        pytest.param(r"\binom{10^9}{10^8}", marks=pytest.mark.slow),
    ],
)
def test_a_hostile_answer_is_wrong_after_its_time_and_the_next_one_is_answered(shared: Verifier, hostile: str) -> None:
    start = time.monotonic()
    assert not shared.are_equal("7", hostile)
    assert time.monotonic() - start < verifier.PATIENCE + 30  # with the start of another process on a busy machine
    assert shared.are_equal("x+1", "1+x")


@pytest.mark.parametrize(
    "hostile",
    ["{" * 10**4 + "}" * 10**4, "(" * 10**5, "\x00\ud800", "\n\n", "1" * 10**5, r"\text{" * 200, '{"gold": "1"}\n'],
    ids=lambda text: f"{text[:2]!r}x{len(text)}",
)
def test_a_broken_answer_is_wrong(shared: Verifier, hostile: str) -> None:
    assert not shared.are_equal("7", hostile)
    assert shared.are_equal("x+1", "1+x")


def test_no_answer_is_evaluated(shared: Verifier, tmp_path: Path) -> None:
    mark = tmp_path / "evaluated"
    for text in (
        f"__import__('os').system('touch {mark}')",
        f"\\text{{__import__('os').system('touch {mark}')}}",
        f"open('{mark}','w')",
        f"1.0.__class__, open('{mark}', 'w')",
        f"\\operatorname{{open('{mark}','w')}}(1)",
    ):
        shared.are_equal("7", text)
        shared.are_equal(text, "7")
    assert not mark.exists()


def test_a_process_that_ended_is_replaced(math_verify: None) -> None:
    made = Verifier(timeout=1.0)
    assert made.are_equal("x+1", "1+x")
    os.kill(made._process.pid, signal.SIGKILL)
    made._process.wait()
    assert made.are_equal("x+1", "1+x")
    assert made.starts == 2
    made.close()
    assert made._process is None


def test_a_process_that_does_not_answer_is_replaced(math_verify: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Verifier(timeout=1.0)
    assert made.are_equal("x+1", "1+x")
    monkeypatch.setattr(verifier, "PATIENCE", 0.5)
    os.kill(made._process.pid, signal.SIGSTOP)
    assert not made.are_equal("x+1", "1+x")
    monkeypatch.undo()
    assert made.are_equal("x+2", "2+x")
    assert made.starts == 2
    made.close()


def test_a_forked_process_asks_one_of_its_own(shared: Verifier) -> None:
    assert shared.are_equal("x+1", "1+x")
    mine = shared._process.pid
    child = os.fork()
    if child == 0:  # no assertion: an exception would run the parent's tests a second time
        is_right = shared.are_equal("x+2", "2+x") and shared._process.pid != mine
        own = shared._process
        shared.close()
        os._exit(0 if is_right and own.poll() is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared.are_equal("x+3", "3+x")
    assert shared._process.pid == mine


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="this system does not show the limits of a process")
def test_its_memory_is_limited(shared: Verifier) -> None:
    assert shared.are_equal("x+1", "1+x")
    limits = Path(f"/proc/{shared._process.pid}/limits").read_text(encoding="utf-8").splitlines()
    (space,) = (line.split()[3] for line in limits if line.startswith("Max address space"))
    assert int(space) == worker.MEMORY


def test_sympy_evaluates_no_text_after_its_start(math_verify: None) -> None:
    program = (
        "import runpy, sys\n"
        "names = runpy.run_path(sys.argv[1])\n"
        "compare = names['_comparison']()\n"
        "from sympy.parsing import sympy_parser\n"
        "assert compare('0.5', r'\\frac{1}{2}')\n"
        "for read in (sympy_parser.parse_expr, sympy_parser.eval_expr):\n"
        "    try:\n"
        "        read('1+1', {}, {})\n"
        "    except ValueError:\n"
        "        continue\n"
        "    raise SystemExit(f'{read} evaluates')\n"
    )
    subprocess.run([sys.executable, "-c", program, worker.__file__], check=True)


def test_questions_of_several_threads_get_their_own_answers(shared: Verifier) -> None:
    found: dict[int, bool] = {}

    def ask(number: int) -> None:
        found[number] = shared.are_equal(f"{number}x", f"x \\cdot {number - number % 2}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number % 2 == 0 for number in range(2, 8)}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "math_verify").exists()])
    with pytest.raises(UserError, match=r"^math-verify: .*No module named .*: pip install math-verify$") as caught:
        Verifier().are_equal("x+1", "1+x")
    assert "\n" not in str(caught.value)
