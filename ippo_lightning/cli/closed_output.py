"""What is left to do if the reader of the output has gone, as `head` does after its lines: nothing."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO


def reader_is_gone() -> bool:
    """Return whether nobody reads standard output or error any more: another broken pipe is a failure of the run."""
    return any(_is_broken(stream) for stream in (sys.stdout, sys.stderr))


def silence() -> None:
    """Let what is still buffered go nowhere: at its end Python would write it, fail, and tell of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_broken(stream):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_broken(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # closed, replaced, or a system without `poll`
        return False
