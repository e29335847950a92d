"""A digest of settings that is the same in every process, also if they name functions."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace


def digest_of(settings: Any) -> str:
    """Return the SHA-256 of settings, in hexadecimal.

    Args:
        settings: parsed, at any depth. A function or class counts by its name and its source: one that was changed is
            another one.
    """
    text = json.dumps(_plain(settings), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, Namespace):
        return {name: _plain(value[name]) for name in value.keys()}  # noqa: SIM118 - iterating gives other things
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return items if isinstance(value, (list, tuple)) else sorted(items, key=str)
    # Its text has its place in memory, which is another one in each process.
    named = value if hasattr(value, "__qualname__") else type(value)
    return [named.__module__, named.__qualname__, _source(named)]


def _source(named: Any) -> str:
    try:
        return inspect.getsource(named)
    except (OSError, TypeError):  # of a built-in, or from a shell
        return ""
