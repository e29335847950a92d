"""Runs and exports of one experiment in forked processes, each with a fault at one of its file operations.

The experiment is built once; a fork of it costs no import and loads no model. Arguments: the words of `ippo fit`, with
a relative `loop.run_dir`. Reads one JSON object a line: `{"folder": where the process works, "job": "fit" or "export",
"fault": "none", "kill" or "terminate", "at": number of the operation, "journal": path, "log": path, "number": of the
order}`. Answers with the number and the exit status, which is negative for a signal.

An operation is what Python's audit events show of files below the folder, and each fsync. The journal has a line for
each, and one for each file that is forced to disk, with its size then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}


class Faults:
    """Counts the file operations of this process and sends it a signal just before one of them."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.folder = os.path.realpath(order["folder"]) + os.sep
        self.number = SIGNALS.get(order["fault"])
        self.at = order["at"]
        self.count = 0
        self.journal = os.open(order["journal"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.fsync = os.fsync
        os.fsync = self.on_fsync  # type: ignore[assignment]
        sys.addaudithook(self.on_event)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & WRITING and self.is_inside(path):
                self.operation(f"open {os.fsdecode(path)}")
        elif event in CHANGING:
            path = arguments[0]
            # `shutil.rmtree` gives names relative to an open folder.
            if isinstance(path, int) or not self.is_inside(path):
                return
            self.operation(f"{event} {os.fsdecode(path)}")

    def is_inside(self, path: str | bytes) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def on_fsync(self, descriptor: int) -> None:
        self.operation("fsync")
        self.fsync(descriptor)
        status = os.fstat(descriptor)
        self.write(f"synced {status.st_ino} {status.st_size}")

    def operation(self, words: str) -> None:
        self.write(f"operation {self.count} {words}")
        self.count += 1
        if self.count - 1 == self.at and self.number is not None:
            os.kill(os.getpid(), self.number)

    def write(self, line: str) -> None:
        os.write(self.journal, line.encode() + b"\n")


def main() -> None:
    import torch

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    from ippo_lightning.cli.command_line import read_command_line
    from ippo_lightning.cli.commands import build_loop
    from ippo_lightning.cli.main import quieten
    from ippo_lightning.cli.parsers import build_parser

    quieten()
    parser = build_parser("fit")
    loop = build_loop(parser, parser.parse_args(read_command_line(["fit", *sys.argv[1:]]).words))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(loop, order)
        _, status = os.waitpid(pid, 0)
        print(order["number"], os.waitstatus_to_exitcode(status), flush=True)


def child(loop: Any, order: dict[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    code = 70
    try:
        Faults(order)
        code = job(loop, order["job"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def job(loop: Any, name: str) -> int:
    if name == "fit":
        from ippo_lightning.run.signals import Interrupted

        try:
            loop.fit()
        except Interrupted as interruption:
            return 128 + interruption.number
        return 0
    from ippo_lightning.cli.export import export_run
    from ippo_lightning.cli.settings import ExportSettings

    # On the folder that a killed export leaves, the same command has to work again.
    export_run(Path(loop.settings.run_dir), loop.module, settings=ExportSettings(output="export"))
    return 0


if __name__ == "__main__":
    main()
