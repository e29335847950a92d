"""Signals that end a run: it finishes its iteration, writes a checkpoint and exits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# Ctrl-C; a scheduler's notice; a closed terminal; SLURM's notice before a requeue (sbatch --signal=SIGUSR1@90)
_KINDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after an iteration; its checkpoint is written.

    Args:
        message: one line on how far the run is.
        number: of the signal.
    """

    def __init__(self, message: str, *, number: int) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def finish_on_signal(announce: Callable[[str], None]) -> Iterator[list[int]]:
    """Collect the numbers of the signals that arrive; a second one raises KeyboardInterrupt at once.

    Args:
        announce: called with one line that explains what will happen.
    """
    arrived: list[int] = []
    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return

    def on_signal(number: int, _: object) -> None:
        if arrived:
            raise KeyboardInterrupt
        arrived.append(number)
        announce(f"{_name(number)}: finishing this iteration, then a checkpoint; again to stop at once.")

    with handled_by(on_signal, _KINDS):
        yield arrived


@contextmanager
def handled_by(handler: Callable[[int, object], None], names: Sequence[str]) -> Iterator[None]:
    """Handle signals inside the block; one that is ignored stays so, as `nohup` ignores SIGHUP.

    Args:
        handler: called with the number of a signal.
        names: of the signals; those that the system does not have are left out.
    """
    kinds = [getattr(signal, name) for name in names if hasattr(signal, name)]
    kinds = [kind for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    try:
        yield
    finally:
        for kind, earlier in before.items():
            signal.signal(kind, earlier)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
