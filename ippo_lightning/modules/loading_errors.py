"""What goes wrong while a checkpoint is loaded: the file, its content, the machine, or the user's own code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.records.out_of_memory import is_out_of_memory
from ippo_lightning.tasks.raised import is_of_user

_MOST_CHARACTERS = 200  # of a reason
# Packages of the classes from which a module of the user's inherits.
_BASES = frozenset({"ippo_lightning", "torch", "lightning", "pytorch_lightning"})
_OF_DEVICES = "restore_location"
"""torch's function that chooses the device of a tensor in a file."""


@contextmanager
def one_line_for(source: Any, *, kind: type, map_location: Any) -> Iterator[None]:
    """Make one line of whatever a damaged checkpoint raises, in torch, in Lightning, or in what is built from it.

    Args:
        source: file, URL or open file.
        kind: class of the module.
        map_location: as the user gave it.

    Raises:
        UserError: the file is missing, cannot be read, or is damaged, or this machine has no such device. Errors of the
            user's own code and of memory pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the cause stays attached
        if is_out_of_memory(error) or _is_of_user(error, kind):
            raise
        raise UserError(_line(error, source, map_location)) from error


def _line(error: Exception, source: Any, map_location: Any) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_CHARACTERS]
    if _is_missing(source):
        return f"checkpoint: {source} does not exist; expected a checkpoint of Trainer"
    if map_location is not None and any(frame.f_code.co_name == _OF_DEVICES for frame in _frames(error)):
        return (
            f"map_location: {map_location!r:.60} cannot be used on this machine ({reason}); expected for example 'cpu'"
        )
    # of the operating system, a network, or a library that reads such an address
    if isinstance(error, (OSError, ImportError)):
        return f"checkpoint: {source} cannot be loaded ({reason}); expected a checkpoint of Trainer"
    return f"checkpoint: {source} cannot be loaded ({reason}); it is damaged, or of another module or version"


def _is_missing(source: Any) -> bool:
    is_address = isinstance(source, str) and "://" in source
    return isinstance(source, (str, Path)) and not is_address and not os.path.exists(source)


def _is_of_user(error: BaseException, kind: type) -> bool:
    """Return whether code of the user's was running: it may raise anything, whatever the file is."""
    packages = {_package(base.__module__) for base in kind.__mro__} - _BASES - sys.stdlib_module_names
    # A subclass may also be installed, or written in a notebook, which is no file.
    return any(
        is_of_user(frame.f_code.co_filename) or _package(frame.f_globals.get("__name__")) in packages
        for frame in _frames(error)
    )


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
