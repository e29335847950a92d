"""Comparisons in forked processes, each with a fault at one of its own file operations; their runs are forked, too.

A fork of this process costs no import. What is forked is real otherwise: a process for each comparison and each run,
with the words, the variables and the log that `ippo compare` gives it; a run goes on when its comparison is killed.

Arguments: the words of `ippo fit` for an experiment like those that are compared. Reads one JSON object a line, with
the `number` of the order, and answers with an object that has it:

- `{"do": "compare", "words": [...], "folder": where, "journal": path, "log": path, "fault": "none", "kill", "terminate"
  or "power failure", "at": number of the operation, or "under way": when a run has a line of history}` answers with the
  exit `code`, negative for a signal; the folders of the runs that were `started`; and how many are `alive`. A power
  failure ends the runs, too. `"freeze": true` stops the run that is under way.
- `{"do": "wait"}` lets the runs that are alive go on, waits for their end, and answers with their `codes`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from file_faults import SIGNALS, Faults, Journal


class Server:
    """Starts comparisons, and runs for them; it is the parent of both."""

    def __init__(self) -> None:
        self.runs: dict[int, Path] = {}
        """The folder of each run that was not waited for."""
        self.ended: dict[int, int] = {}

    def compare(self, order: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            comparison(order, theirs)
        theirs.close()
        started: list[str] = []
        # A comparison that is killed closes its end at any moment.
        with ours, ours.makefile() as questions, suppress(ConnectionError):
            for line in questions:
                answer = self.answer(json.loads(line), order, comparison=pid, started=started)
                ours.sendall(json.dumps(answer).encode() + b"\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if order["fault"] == "power failure":
            for run in self.runs:
                os.kill(run, signal.SIGKILL)
            self.wait()
        return {"code": code, "started": started, "alive": sum(self.poll(run) is None for run in list(self.runs))}

    def answer(
        self, question: dict[str, Any], order: dict[str, Any], *, comparison: int, started: list[str]
    ) -> int | None:
        """Start a run and return its number, or return the exit status of one, None while it is under way."""
        if "poll" in question:
            run = question["poll"]
            if order["at"] == "under way" and run in self.runs and (self.runs[run] / "history.jsonl").exists():
                order["at"] = "over"
                if order.get("freeze"):
                    os.kill(run, signal.SIGSTOP)
                os.kill(comparison, SIGNALS[order["fault"]])
            return self.poll(run)
        folder = Path(order["folder"]) / Path(question["log"]).parent
        pid = os.fork()
        if pid == 0:
            a_run(question, order)
        self.runs[pid] = folder
        started.append(str(folder))
        return pid

    def poll(self, run: int) -> int | None:
        if run in self.runs:
            found, status = os.waitpid(run, os.WNOHANG)
            if found:
                del self.runs[run]
                self.ended[run] = os.waitstatus_to_exitcode(status)
        return self.ended.get(run)

    def wait(self) -> dict[str, Any]:
        codes = []
        for run in list(self.runs):
            os.kill(run, signal.SIGCONT)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]))
            del self.runs[run]
        return {"codes": codes}


class ForkedRun:
    """Takes the place of `subprocess.Popen` in a comparison: the server forks the run."""

    connection: socket.socket
    faults: Faults

    def __class_getitem__(cls, _: object) -> type[ForkedRun]:
        return cls

    def __init__(self, words: list[str], *, stdout: Any, env: Mapping[str, str], **_: Any) -> None:
        assert words[:3] == [sys.executable, "-m", "ippo_lightning.cli"]
        self.faults.operation(f"before the start of {stdout.name}")
        self.pid = self.ask({"start": words[3:], "log": stdout.name, "environment": dict(env)})
        self.returncode: int | None = None
        self.faults.operation(f"after the start of {stdout.name}")

    def ask(self, question: dict[str, Any]) -> Any:
        self.connection.sendall(json.dumps(question).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self.connection.recv(100)
        return json.loads(answer)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.ask({"poll": self.pid})
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def comparison(order: dict[str, Any], connection: socket.socket) -> NoReturn:
    def job() -> int:
        from ippo_lightning.cli import jobs
        from ippo_lightning.cli.main import main as ippo

        os.chdir(order["folder"])
        # A kill of the process is what a power failure is to it; the runs are killed, too, by the server.
        fault = "kill" if order["fault"] == "power failure" else order["fault"]
        ForkedRun.connection, ForkedRun.faults = connection, Faults({**order, "fault": fault})
        jobs.subprocess = SimpleNamespace(Popen=ForkedRun, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
        jobs._POLL_SECONDS = 0.02
        return ippo(order["words"])

    forked(job, log=order["log"])


def a_run(question: dict[str, Any], order: dict[str, Any]) -> NoReturn:
    def job() -> int:
        from ippo_lightning.cli.main import main as ippo

        os.setsid()
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(question["environment"])
        Journal(order["journal"])
        return ippo(question["start"])

    forked(job, log=os.path.join(order["folder"], question["log"]))


def forked(job: Callable[[], int], *, log: str) -> NoReturn:
    """Do a job in this process, which was forked for it."""
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """Import what commands import, and build one experiment, so that no fork has to."""
    import torch

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    import ippo_lightning.cli.compare
    import ippo_lightning.report  # noqa: F401
    from ippo_lightning.cli.building import build_loop
    from ippo_lightning.cli.command_line import read_command_line
    from ippo_lightning.cli.main import quieten
    from ippo_lightning.cli.parsers import build_parser

    quieten()
    parser = build_parser("fit")
    build_loop(parser, parser.parse_args(read_command_line(["fit", *sys.argv[1:]]).words))


def main() -> None:
    warm_up()
    server = Server()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = server.compare(order) if order["do"] == "compare" else server.wait()
        print(json.dumps({**answer, "number": order["number"]}), flush=True)


if __name__ == "__main__":
    main()
