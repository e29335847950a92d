"""Make text of any origin safe to show: short, and without characters that hide, reorder or control text."""

from __future__ import annotations

import unicodedata

_CONTROL_PICTURES = 0x2400  # Unicode block with a picture of each C0 control, in the same order
_LONGEST_COMBINING_RUN = 3  # longer stacks of marks cover the lines above and below
_MOST_REMEMBERED = 10_000  # characters; a hostile text may contain a million different ones


def cut(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters and append the number of characters removed."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… (+{len(text) - limit:,} characters)"


def visible_text(text: str, *, multiline: bool = False) -> str:
    r"""Replace every character that could hide, reorder or control text by a visible sign.

    C0 controls become their control pictures (NUL is shown as ␀, ESC as ␛). A newline becomes ↵ and a newline. Format,
    surrogate, private and unassigned characters become codes such as ⟨U+202E⟩. So do combining marks after three in a
    row.

    Args:
        text: text of any origin.
        multiline: whether to keep newlines and tabs as they are (for settings files).

    Returns:
        Text without control characters other than newline (and tab if `multiline`); always encodable as UTF-8.

    Example:
        >>> visible_text("a\x00b")
        'a␀b'
    """
    # Two fast paths: most texts are plain ASCII, and few of the others contain combining marks.
    if text.isascii() and text.isprintable():
        return text
    table = _MULTILINE if multiline else _ONE_LINE
    if not any(map(unicodedata.combining, text)):
        return text.translate(table)
    shown: list[str] = []
    combining = 0
    for character in text:
        combining = combining + 1 if unicodedata.combining(character) else 0
        too_many = combining > _LONGEST_COMBINING_RUN
        shown.append(_code_point(character) if too_many else table[ord(character)])
    return "".join(shown)


class _Visible(dict[int, str]):
    """Code point to what is shown; entries are added on first use, as most texts contain few different characters."""

    def __missing__(self, code: int) -> str:
        shown = _visible_character(chr(code))
        if len(self) < _MOST_REMEMBERED:
            self[code] = shown
        return shown


_ONE_LINE, _MULTILINE = _Visible(), _Visible({ord("\n"): "\n", ord("\t"): "\t"})


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
