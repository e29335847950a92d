"""Dispatch of the project's own hooks to every callback that has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def call_hook(callbacks: Iterable[object], name: str, *arguments: Any) -> None:
    """Call method `name` of each callback that has one, in order.

    Args:
        callbacks: Lightning callbacks, or any objects.
        name: `on_rollout_start`, `on_rollout_end` or `on_update_end`.
        arguments: handed on as they are: the trainer, the module, and what the hook is about.
    """
    for callback in callbacks:
        hook = getattr(callback, name, None)
        if callable(hook):
            hook(*arguments)
