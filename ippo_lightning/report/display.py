"""How numbers are shown: short, and the same in the table, the markdown and the report."""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"
"""What is shown if a run has no number."""

_MINUS = "\N{MINUS SIGN}"


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


def unbroken(sentence: str) -> str:
    """Join numbers and units by spaces that do not break, so that they stay on one line."""
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
        shown = f"{value:#.3g}"  # "#" keeps trailing zeros: 2.30, so that columns have equal digits
    return shown.replace("-", _MINUS)
