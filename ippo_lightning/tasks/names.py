"""Names of a user's functions and objects for messages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def callable_name(given: object) -> str:
    """Return where a function, a method or the class of an object is defined, such as `my_rewards.by_length`.

    The text of an object contains its address in memory, which differs from run to run, so it is never used.

    Example:
        >>> callable_name(callable_name), callable_name(functools.partial(print))
        ('ippo_lightning.tasks.names.callable_name', 'partial of builtins.print')
    """
    if isinstance(given, functools.partial):
        return f"partial of {callable_name(given.func)}"
    # an object has no __qualname__ unless it sets one; its class always has
    named = given if getattr(given, "__qualname__", None) else type(given)
    return f"{named.__module__}.{named.__qualname__}"  # type: ignore[attr-defined]


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with this number of positional arguments; True if that is unknown.

    Args:
        function: anything that can be called.
        count: of arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled code need not state its arguments
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def takes_keyword(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name that a caller may give by keyword; False if unknown.

    Args:
        function: anything that can be called. What a `functools.partial` already gives is not the caller's to give.
        name: of the parameter.
    """
    if isinstance(function, functools.partial) and name in function.keywords:
        return False
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
