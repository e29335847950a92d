"""Dispatch of the project's own hooks to every callback that has them."""

from __future__ import annotations

from collections.abc import Iterable


def call_hook(callbacks: Iterable[object], name: str, *arguments: object) -> None:
    """Call method `name` of each callback that has one, in order.

    Args:
        callbacks: Lightning callbacks, or any objects.
        name: `on_rollout_start`, `on_rollout_end` or `on_update_end`.
        arguments: passed unchanged: the trainer, the module, and what the hook is about.
    """
    for callback in callbacks:
        # By name: Lightning's own callbacks lack these hooks, and a callback needs no base class of this project.
        hook = getattr(callback, name, None)
        if callable(hook):
            hook(*arguments)
