"""A reader that has gone, as `head` does, ends a command without a word."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from ippo_lightning.cli import main as room
from ippo_lightning.cli.main import EXIT_BROKEN_PIPE, EXIT_FAILURE, main


def with_a_gone_reader(words: list[str]) -> tuple[int, str]:
    """Run `ippo` with an output that nobody reads; return its exit code and what it writes to standard error."""
    with subprocess.Popen(
        [sys.executable, "-m", "ippo_lightning.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        return process.wait(), process.stderr.read()


@pytest.mark.parametrize(
    "words",
    [
        ["experiments"],
        pytest.param(["--help"], marks=pytest.mark.slow),
        pytest.param(["--version"], marks=pytest.mark.slow),
        pytest.param(["fit", "--help"], marks=pytest.mark.slow),
        pytest.param(["fit", "--task", "arithmetic", "--print_config"], marks=pytest.mark.slow),
    ],
)
def test_a_command_whose_reader_has_gone_ends_silently(words: list[str]) -> None:
    code, errors = with_a_gone_reader(words)
    assert errors == ""
    assert code in (EXIT_BROKEN_PIPE, 0)  # argparse passes over what it cannot write


def test_a_broken_pipe_of_the_run_itself_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")  # as of an environment's process

    monkeypatch.setattr(room, "run", broken)
    assert main(["experiments"]) == EXIT_FAILURE
    assert "ippo: stopped: " in capsys.readouterr().err
