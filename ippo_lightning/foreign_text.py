"""Text of any origin, made safe to show: short, and nothing in it that hides, reorders or commands."""

from __future__ import annotations

import unicodedata

_CONTROL_PICTURES = 0x2400
_LONGEST_COMBINING_RUN = 3


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
