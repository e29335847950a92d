"""Names of methods, which become folders: what `ippo compare` writes, `ippo report` reads."""

from __future__ import annotations

import re

_PART = "[A-Za-z0-9_][A-Za-z0-9_.+-]*"
METHOD_NAME = "letters, digits and _ . + - /"
"""What a name may contain, for a message."""


def is_method_name(name: str) -> bool:
    """Return whether a method may have this name: a relative path that leads nowhere else and needs no quoting.

    Args:
        name: of a method, or of a column of a comparison.
    """
    return re.fullmatch(rf"{_PART}(/{_PART})*", name) is not None
