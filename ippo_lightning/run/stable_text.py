"""Texts and digests of values that are the same in another process."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

_SAMPLED = 256
"""Entries of a list that count: with millions of them, all would take long at every start."""
_DEPTH = 4
"""How deep objects are followed."""


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that change with the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stable_text(value: Any, depth: int = _DEPTH) -> str:
    """Return a text of plain values, and of objects by their attributes; nothing in it depends on the process.

    Args:
        value: anything; a class or function gives its name, and what lies too deep the name of its class.
        depth: how deep objects are followed.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} {digest(str(value.detach().flatten()[:64].tolist()))}"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if depth == 0:
        return str(name)
    if isinstance(value, Mapping):
        # Sorted: the order of a YAML's keys, or in which an object got its attributes, is no difference.
        entries = sorted(f"{key!s}: {stable_text(entry, depth - 1)}" for key, entry in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(stable_text(entry, depth - 1) for entry in value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(stable_text(entry, depth - 1) for entry in _some(value)) + f"] {len(value)}"
    # A class or a function is known by its name; an object by its class and what it has.
    attributes = vars(value) if hasattr(value, "__dict__") and not callable(value) else {}
    return f"{name}({stable_text(attributes, depth)})" if attributes else str(name)


def plain_text(value: Any) -> str:
    """Return the text of an object, as for JSON; one that would name the object's address is replaced.

    Args:
        value: anything, such as a date.
    """
    kind: Any = type(value)
    has_own = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
    return str(value) if has_own and not callable(value) else stable_text(value)


def _some(values: Sequence[Any]) -> Iterable[Any]:
    return itertools.islice(values, _SAMPLED)
