"""A command whose reader has ended, as `head` does after its lines, ends without a message."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO


def reader_is_gone() -> bool:
    """Return whether the reader of standard output or error has ended; any other broken pipe is a failed run."""
    return any(_is_broken(stream) for stream in (sys.stdout, sys.stderr))


def silence() -> None:
    """Throw away what is still buffered. Python would write it at its end, fail, and report that."""
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
