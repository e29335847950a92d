"""Which rows of a pass a call inside it works on, for passes that cut their rows once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FIRST_ROW: ContextVar[int | None] = ContextVar("first_row", default=None)


@contextmanager
def row_band(first_row: int) -> Iterator[None]:
    """Say that all modules called inside the block see a band of the pass's rows instead of all of them.

    A hook on such a module cannot see from its input which rows of the pass these are.

    Args:
        first_row: the row of the pass that the band starts with.
    """
    token = _FIRST_ROW.set(first_row)
    try:
        yield
    finally:
        _FIRST_ROW.reset(token)


def first_row_of_band() -> int | None:
    """Return the row of the pass that the present band starts with; None outside of a band: all rows take part."""
    return _FIRST_ROW.get()
