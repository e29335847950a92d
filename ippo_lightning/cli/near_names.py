"""Which name was probably meant: the nearest one, and all there are, the nearest first."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_CUTOFF = 0.6


def meant(name: str, known: Collection[str]) -> str:
    """Return a hint such as `; did you mean 'gsm8k'? There are gsm8k, math`, or an empty text if nothing is known.

    Args:
        name: what the user wrote.
        known: the names that there are.

    Example:
        >>> meant("gsm", ["arithmetic", "gsm8k"]), meant("qwen", ["arithmetic", "gsm8k"])
        ("; did you mean 'gsm8k'? There are gsm8k, arithmetic", '; expected one of arithmetic, gsm8k')
    """
    if not known:
        return ""
    listed = ", ".join(nearest_first(name, known))
    begins = [other for other in known if other.lower().startswith(name.lower())]
    # of several that begin with it, none is likelier than the others
    near = begins if begins else difflib.get_close_matches(name, known, n=1, cutoff=_CUTOFF)
    return f"; did you mean '{near[0]}'? There are {listed}" if len(near) == 1 else f"; expected one of {listed}"


def nearest_first(name: str, known: Collection[str]) -> list[str]:
    """Return the names by their likeness to one: those that begin with it, those that contain it, then the others.

    Args:
        name: what the user wrote.
        known: the names that there are.

    Example:
        >>> nearest_first("qwen", ["gemma-2-2b", "my-qwen", "qwen3-0.6b"])
        ['qwen3-0.6b', 'my-qwen', 'gemma-2-2b']
    """
    wanted = name.lower()
    near = {other: difflib.SequenceMatcher(None, wanted, other.lower()).ratio() for other in known}

    def place(other: str) -> tuple[int, float, str]:
        begins, contains = other.lower().startswith(wanted), wanted in other.lower()
        # what is not even near is in the order of the alphabet, which a reader can search
        return (0 if begins else 1 if contains else 2, -near[other] if near[other] >= _CUTOFF else 0.0, other)

    return sorted(known, key=place)


def is_part_of(name: str, known: Collection[str]) -> bool:
    """Return whether a name is near to another one, or is a part of it."""
    wanted = name.lower()
    return any(wanted in other.lower() for other in known) or bool(
        difflib.get_close_matches(name, known, n=1, cutoff=_CUTOFF)
    )
