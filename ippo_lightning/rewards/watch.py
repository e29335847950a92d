"""A call of a user's function that takes long is named, and ended if it has a limit."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ippo_lightning.errors import UserError
from ippo_lightning.storage.untrusted_text import visible_text

NOTICE_SECONDS = 60.0
"""After so long a call is named."""
GRACE_SECONDS = 10.0
"""A call that does not end so long after its limit takes the process with it."""
# Not SIGALRM: graders use it for limits of their own, math-verify for example.
_SIGNAL = getattr(signal, "SIGVTALRM", None) if hasattr(signal, "pthread_kill") else None
_EXIT_USER_ERROR = 2


class _Expired(BaseException):
    """Not an `Exception`, which a user's function may catch."""


@contextmanager
def watched(what: str, *, limit: float | None, field: str) -> Iterator[None]:
    """Print one line if the block runs for a minute, and end it after `limit` seconds.

    A signal interrupts the block in the main thread, also while it sleeps or waits for a network. What does not return
    to Python cannot be interrupted: after 10 more seconds the process then ends with code 2. In any other thread the
    error is raised once the block ends by itself.

    Args:
        what: names the function in messages.
        limit: in seconds; None for none.
        field: the setting that contains the limit.

    Raises:
        UserError: the block took longer than `limit`.
    """
    watch = _Watch(visible_text(what), limit=limit, field=field)
    with _raising_on_signal(watch):
        watch.start()
        try:
            with suppress(_Expired):  # raised below, as the user's error
                yield
        finally:
            watch.stop()
    # Also if the function has caught the interruption and returned: its values came too late.
    if watch.is_expired:
        raise UserError(watch.error)


@contextmanager
def _raising_on_signal(watch: _Watch) -> Iterator[None]:
    if _SIGNAL is None or watch.limit is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_: int, __: FrameType | None) -> None:
        # A signal that arrives as the block ends must not raise outside of it.
        if not watch.is_over.is_set():
            raise _Expired

    before = signal.signal(_SIGNAL, on_signal)
    watch.target = threading.get_ident()
    try:
        yield
    finally:
        signal.signal(_SIGNAL, before)


class _Watch:
    """A thread that waits until the call is over, or for too long."""

    def __init__(self, what: str, *, limit: float | None, field: str) -> None:
        self.limit = limit
        self.error = (
            f"{what} ran longer than the {limit:g} seconds of {field}; set a higher limit, or null for none"
            if limit is not None
            else ""
        )
        ending = f"it ends after the {limit:g} seconds of {field}" if limit is not None else f"{field} can limit it"
        self.notice = f"{what} has been running for {NOTICE_SECONDS:g} seconds and has not returned; {ending}"
        self.target: int | None = None
        self.is_over, self.is_expired = threading.Event(), False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._wait, name=f"watch of {what}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._lock:  # so that no signal is sent after this
            self.is_over.set()

    def _wait(self) -> None:
        until_limit = float("inf") if self.limit is None else self.limit
        if self.is_over.wait(min(NOTICE_SECONDS, until_limit)):
            return
        if until_limit > NOTICE_SECONDS:
            print(self.notice, file=sys.stderr, flush=True)
            if self.limit is None or self.is_over.wait(self.limit - NOTICE_SECONDS):
                return
        self._expire()

    def _expire(self) -> None:
        with self._lock:
            if self.is_over.is_set():
                return
            self.is_expired = True
            if self.target is None:
                return
            assert _SIGNAL is not None
            signal.pthread_kill(self.target, _SIGNAL)
        if not self.is_over.wait(GRACE_SECONDS):
            print(f"ippo: error: {self.error}", file=sys.stderr, flush=True)
            # Neither an exception nor a signal reaches code that does not return to Python.
            os._exit(_EXIT_USER_ERROR)
