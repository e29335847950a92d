"""Rewards that are `async def`: their result is waited for."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any


def awaited(returned: Any) -> Any:
    """Return the result of a coroutine; anything else as it is.

    Args:
        returned: what a reward returned.
    """
    if not inspect.isawaitable(returned):
        return returned
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # In this thread, where the limit of a reward can interrupt it.
        return asyncio.run(_finished(returned))
    return _in_a_thread(returned)


async def _finished(awaitable: Any) -> Any:
    return await awaitable


def _in_a_thread(awaitable: Any) -> Any:
    """Return the result by a loop of its own: in a notebook, the loop of this thread is in use."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, asyncio.run(_finished(awaitable))))
        except BaseException as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join()
    is_done, result = outcome
    if not is_done:
        raise result
    return result
