"""Dispatch of the project's own hooks to every callback that has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

_RAISED_IN = "_ippo_raised_in"


def call_hook(callbacks: Iterable[object], name: str, *arguments: object) -> None:
    """Call method `name` of each callback that has one, in order.

    Args:
        callbacks: Lightning callbacks, or any objects.
        name: `on_rollout_start`, `on_rollout_end`, `on_minibatch_start` or `on_update_end`.
        arguments: passed unchanged: the trainer, the module, and what the hook is about.
    """
    for callback in callbacks:
        # By name: Lightning's own callbacks lack these hooks, and a callback needs no base class of this project.
        hook = getattr(callback, name, None)
        if callable(hook):
            try:
                hook(*arguments)
            except Exception as error:
                with contextlib.suppress(AttributeError):  # an exception with slots takes no note
                    setattr(error, _RAISED_IN, f"{type(callback).__name__}.{name}")
                raise


def hook_that_raised(error: BaseException) -> str | None:
    """Return `Callback.hook` if `call_hook` passed the error on, else None."""
    return getattr(error, _RAISED_IN, None)
