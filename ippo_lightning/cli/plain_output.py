"""What reaches the terminal is plain text, whatever its origin and whatever the terminal's encoding."""

from __future__ import annotations

import io
import logging
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

from ippo_lightning.cli.error_messages import one_line
from ippo_lightning.storage.terminal_lines import broken_between_words, terminal_width
from ippo_lightning.storage.untrusted_text import visible_text


def show_plain_text() -> None:
    """Make what this process prints plain: its streams, its warnings, its log, and errors that nothing caught."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal of another encoding gets a code in place of a sign that it lacks, instead of an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # what this library and others warn of contains values of a YAML and names from a model's folder
    warnings.formatwarning = _plain_warning
    # the record and not a handler: libraries bring handlers of their own
    logging.setLogRecordFactory(_PlainRecord)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_FittedFormatter())
    sys.excepthook = _print_plain


class _PlainRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return visible_text(super().getMessage(), multiline=True)


def _plain_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    # one line, without the place in the source
    return _fitted(f"ippo: warning: {visible_text(one_line(str(message)))}") + "\n"


class _FittedFormatter(logging.Formatter):
    """Of log lines that nothing but the terminal gets."""

    def format(self, record: logging.LogRecord) -> str:
        return _fitted(super().format(record))


def _fitted(text: str) -> str:
    return broken_between_words(text, terminal_width(sys.stderr))


def _print_plain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(visible_text(text, multiline=True), end="", file=sys.stderr)
