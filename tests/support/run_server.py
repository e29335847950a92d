"""Runs `ippo` in forked processes that share one import: a real process each, to be killed, in a tenth of the time.

Reads one JSON list a line: `{"arguments": [...], "largest_file": bytes or null, "log": path}`, and "faults" if the
process is to end at one of its file operations (see `file_faults.Faults`); answers with the process number, and, to
`{"wait": pid}`, with its exit status (negative for a signal).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from file_faults import Faults


def main() -> None:
    import torch

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    from ippo_lightning.cli import parsers
    from ippo_lightning.cli.main import main as ippo

    parsers.build_parser()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(ippo, order)
        print(pid, flush=True)


def child(ippo: Any, order: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["largest_file"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond it then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    if order.get("faults"):
        Faults(order["faults"])
    code = 70
    try:
        code = ippo(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
