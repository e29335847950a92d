"""How numbers and foreign text are shown: safe, short, and the same in the table, the markdown and the page."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

MISSING = "\N{EN DASH}"
"""What stands where a run has no number."""

_MINUS = "\N{MINUS SIGN}"
_CONTROL_PICTURES = 0x2400
_LONGEST_COMBINING_RUN = 3


def number(value: Any) -> float | None:
    """Return a finite number as float, anything else (text, NaN, true, a huge integer) as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def cut(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters and say how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… (+{len(text) - limit:,} characters)"


def visible_text(text: str, *, multiline: bool = False) -> str:
    r"""Replace every character that could hide, reorder or command by a visible sign.

    C0 controls become their control pictures (NUL is shown as ␀, ESC as ␛), a newline becomes ↵ and a newline; format,
    surrogate, private and unassigned characters become ⟨U+202E⟩. After three in a row,
    combining marks are shown as codes too.

    Args:
        text: of any origin.
        multiline: leave newlines and tabs as they are (settings files).

    Returns:
        Text without control characters other than newline (and tab where `multiline`); always encodable as UTF-8.

    Example:
        >>> visible_text("a\x00b")
        'a␀b'
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    combining = 0
    for character in text:
        combining = combining + 1 if unicodedata.combining(character) else 0
        if combining > _LONGEST_COMBINING_RUN:
            shown.append(_code_point(character))
        elif multiline and character in "\n\t":
            shown.append(character)
        else:
            shown.append(_visible_character(character))
    return "".join(shown)


def _visible_character(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵\n"
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return _code_point(character)
    return character


def _code_point(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def percent(share: float | None, *, digits: int = 1) -> str:
    """Return a share in [0, 1] as a bare percentage: 0.923 is `92.3`."""
    return MISSING if share is None else f"{100 * share:.{digits}f}"


def points(difference: float | None) -> str:
    """Return a difference of two shares in percentage points, always with its sign: -0.239 is `−23.9`."""
    if difference is None:
        return MISSING
    shown = f"{100 * difference:+.1f}"
    return "±0.0" if shown[1:] == "0.0" else shown.replace("-", _MINUS)


def unbroken(sentence: str) -> str:
    """Keep numbers and their units on one line."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(" s ", "\N{NO-BREAK SPACE}s ")


def plain(value: float | None) -> str:
    """Return any number in about three significant digits."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        shown = f"{value:.2e}"
    elif size >= 100 or (size < 10 and value == int(value)):
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:#.3g}"
    return shown.replace("-", _MINUS)
