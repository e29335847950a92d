"""How numbers are shown: short, and the same in the table, the markdown and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MISSING = "\N{EN DASH}"
"""What is shown if a run has no number."""

_MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: object) -> float | None:
    """Return a finite number as float; None for anything else (text, NaN, true, an integer too large for a float)."""
    # bool is a subclass of int, but `true` in a file is no measurement.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        converted = float(value)
    except OverflowError:  # JSON allows integers of any length
        return None
    return converted if math.isfinite(converted) else None


def percent(fraction: float | None, *, digits: int = 1) -> str:
    """Return a fraction in [0, 1] as a bare percentage: 0.923 is `92.3`."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float | None) -> str:
    """Return a difference of two fractions in percentage points, always with its sign: -0.239 is `−23.9`."""
    if difference is None:
        return MISSING
    shown = f"{100 * difference:+.1f}"
    # -0.04 points would show as "-0.0", a sign that the digits do not support.
    return "±0.0" if shown[1:] == "0.0" else shown.replace("-", _MINUS)


def whole(value: float | None) -> str:
    """Return a mean of counts: without decimals if it is a whole number, else in about three significant digits."""
    return f"{value:,.0f}" if value is not None and value == int(value) and abs(value) < 1e9 else plain(value)


def signed(difference: float | None) -> str:
    """Return a difference of any two numbers in about three significant digits, always with its sign."""
    shown = plain(difference)
    if difference is None or shown.startswith(_MINUS):
        return shown
    return f"+{shown}" if difference else f"±{shown}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one.

    Args:
        count: of the things.
        noun: in the singular, one whose plural ends in s.

    Example:
        >>> counted(1, "iteration"), counted(0, "seed"), counted(2048, "test prompt")
        ('1 iteration', '0 seeds', '2,048 test prompts')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_words(names: Sequence[str]) -> str:
    """Return names as part of a sentence.

    Example:
        >>> in_words(["SFT"]), in_words(["SFT", "PPO", "I-PPO"])
        ('SFT', 'SFT, PPO and I-PPO')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def break_words(text: str, *, width: int) -> list[str]:
    """Return a text as lines, broken at spaces, else behind a sign that joins words, else anywhere.

    Args:
        text: a name.
        width: of a line, in characters.

    Example:
        >>> break_words("arithmetic/smollm2-135m+lora/ppo", width=16)
        ['arithmetic/', 'smollm2-135m+', 'lora/ppo']
    """
    lines: list[str] = []
    for part in re.findall(r"[^\s/_+-]*[/_+-]+|[^\s/_+-]+|\s+", text):
        if lines and len(lines[-1]) + len(part.rstrip()) <= width:
            lines[-1] += part
            continue
        # A part that is longer than a line by itself.
        pieces = [part[start : start + width] for start in range(0, len(part), width)]
        lines += pieces if part.strip() else []
    return [line.strip() for line in lines] or [""]


def unbroken(sentence: str) -> str:
    """Join numbers and units by spaces that do not break, so that they stay on one line."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(" s ", "\N{NO-BREAK SPACE}s ")


def plain(value: float | None) -> str:
    """Return any number in about three significant digits."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-5:
        digits, _, power = f"{value:.2e}".partition("e")
        shown = f"{digits} \N{MULTIPLICATION SIGN} 10{str(int(power)).translate(_RAISED)}"
    elif 0 < size < 1e-3:
        shown = f"{value:.{2 - math.floor(math.log10(size))}f}"
    elif size >= 100 or (size < 10 and value == int(value)):
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:#.3g}"  # "#" keeps trailing zeros: 2.30, so that columns have equal digits
    return shown.replace("-", _MINUS)


def escaped_markdown(text: str) -> str:
    """Escape a name, so that it cannot become Markdown or HTML."""
    for character in "\\`*[]<>|":  # the backslash first, or it would escape the escapes
        text = text.replace(character, f"\\{character}")
    # inside a word, as in x86_64, it means nothing to markdown
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return text or MISSING
