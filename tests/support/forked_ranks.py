"""Runs a script's `main` on two ranks that are forked from one process, so that its imports are paid once, not thrice.

python forked_ranks.py SCRIPT FOLDER [ARGUMENTS]

The script finds the environment that torchrun makes. A rank that fails ends the other one.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType

RANKS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_rank(module: ModuleType, rank: int, port: int, folder: Path, arguments: list[str]) -> int:
    """Run one rank in this process; return its exit code."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "forked",  # by this Lightning knows that the ranks exist already
    }
    try:
        module.main(folder, *arguments)
    except BaseException:
        print(f"rank {rank}:", traceback.format_exc(), sep="\n", file=sys.stderr)
        return 1
    return 0


def main(script: Path, folder: Path, arguments: list[str]) -> int:
    sys.path.insert(0, str(script.parent))
    module = importlib.import_module(script.stem)
    port, children = free_port(), []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            code = run_rank(module, rank, port, folder, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # no clean-up of what the parent owns
        children.append(child)
    failed = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = 1
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
