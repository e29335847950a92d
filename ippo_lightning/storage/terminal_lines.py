"""Long lines at a terminal: broken between words, which a terminal itself does anywhere."""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

_INDENT = "  "
_NARROWEST = 30  # columns; in a narrower window every line would be broken after each word


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream writes to; None for a file or a pipe.

    Args:
        stream: for example `sys.stderr`.
    """
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError, AttributeError):  # closed, replaced, or no terminal after all
        return None


def broken_between_words(text: str, width: int | None) -> str:
    r"""Return a text with lines of at most `width` columns; a word that is longer, such as a path, stays whole.

    Args:
        text: one line or several.
        width: None leaves the text as it is: a log is searched by lines.

    Example:
        >>> broken_between_words("ippo: error: task: 'gsm' is not a file", 30)
        "ippo: error: task: 'gsm' is\n  not a file"
    """
    if width is None or width < _NARROWEST:
        return text
    return "\n".join(line if len(line) <= width else _broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    begin = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(),
        width=width,
        initial_indent=begin,
        subsequent_indent=begin + _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
