"""What a user's function raised: the exception, its place in the user's file, and what the row has."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_CHARACTERS = 150  # of a message; that of a library may be of any length
_MOST_OF_KEYS = 100
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep
_OF_PYTHON = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))
# what a wrong key or a value of another type raises
_OF_A_ROW = (LookupError, TypeError, AttributeError)


def raised(error: BaseException, example: Mapping[str, Any] | None = None) -> str:
    """Return the end of a message such as `raised KeyError: 'topic' in my_reward.py, line 12`.

    Args:
        error: what the function raised.
        example: of the row, or of the first one; its keys are named where one of them may be the cause.
    """
    message = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return f"raised {type(error).__name__}: {message}{_place(error)}{_keys(error, example)}"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_of_user(frame.filename)]
    if not own:
        return ""
    return f" in {_shown_path(own[-1].filename)}, line {own[-1].lineno}"


def _shown_path(name: str) -> str:
    """Return the path of a file below the working folder from there, as the user knows it; any other one as it is."""
    try:
        path = os.path.relpath(name)
    except (OSError, ValueError):  # the working folder is gone, or on another drive
        return name
    return name if path.startswith(os.pardir) else path


def is_of_user(name: str) -> bool:
    """Return whether a file is neither part of this library, nor of Python, nor installed, nor a shell.

    Args:
        name: path of the file, as a frame names it.
    """
    path = os.path.realpath(name)
    return os.path.isfile(path) and not path.startswith((_OWN, *_OF_PYTHON)) and "-packages" + os.sep not in path


def _keys(error: BaseException, example: Mapping[str, Any] | None) -> str:
    if not isinstance(error, _OF_A_ROW) or not isinstance(example, Mapping):
        return ""
    names = ", ".join(str(name) for name in example)[:_MOST_OF_KEYS]
    return f"; the keys of example are {names or 'none'}"
