"""Runs and exports of one experiment in forked processes, each with a fault at one of its file operations.

The experiment is built once; a fork of it costs no import and loads no model. Arguments: the words of `ippo fit`, with
a relative `loop.run_dir`. Reads one JSON object a line: `{"folder": where the process works, "job": "fit" or "export",
"fault": "none", "kill" or "terminate", "at": number of the operation, "journal": path, "log": path, "number": of the
order}`. Answers with the number and the exit status, which is negative for a signal.

What an operation is, and what the journal has of it: see `file_faults`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from file_faults import Faults


def main() -> None:
    import torch

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    from ippo_lightning.cli.building import build_loop
    from ippo_lightning.cli.command_line import read_command_line
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
