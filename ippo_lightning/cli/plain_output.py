"""What reaches the terminal is plain text, whatever its origin and whatever the terminal's encoding."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import Any

from ippo_lightning.storage.untrusted_text import visible_text

_formatwarning: Any = warnings.formatwarning


def show_plain_text() -> None:
    """Make the streams of this process, its warnings and its log safe to print to."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal of another encoding gets a code in place of a sign that it lacks, instead of an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # what this library and others warn of contains values of a YAML and names from a model's folder
    warnings.formatwarning = _plain_warning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible_text(super().format(record), multiline=True)


def _plain_warning(*arguments: Any, **named: Any) -> str:
    return visible_text(_formatwarning(*arguments, **named), multiline=True)
