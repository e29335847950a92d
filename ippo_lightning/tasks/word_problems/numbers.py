"""Numbers of a question, in digits and in words, and numbers as a response writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 12
"""Digits of a number, on each side of the point; a longer one is not read."""
MAX_PLACES = 6
"""Decimals of a result that can still be written exactly."""
MAX_QUESTION = 4096
"""Characters of a question that are read."""

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {
    **{word: number for number, word in enumerate(_ONES)},
    **{word: 10 * number for number, word in enumerate(_TENS, start=2)},
    **{"dozen": 12, "hundred": 100, "thousand": 1000, "twice": 2, "double": 2, "triple": 3},
}
_TENS_WORDS = "|".join(_TENS)
_ONES_WORDS = "|".join(_ONES[1:10])
# 1,200 is one number; the comma of "3, 4" is not part of one. [0-9] and not \d, which matches other scripts as well
_DIGITS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+")
_WORD = re.compile(rf"\b(?:{_TENS_WORDS})[ -](?:{_ONES_WORDS})\b|[a-z]+")


@dataclass(frozen=True, slots=True)
class NumberPlace:
    """A number and where it stands in a question."""

    start: int
    end: int
    value: Fraction
    is_digits: bool
    """Whether it is written in digits; else it is a word."""


def numbers_of(question: str) -> list[Fraction]:
    """Return the numbers of a question in their order; one that stands there twice comes twice.

    Digits with thousands separators and decimals count, and the words from zero to ninety-nine, hundred, thousand,
    dozen, twice, double and triple.

    Args:
        question: any text; its first 4,096 characters are read.
    """
    return [place.value for place in number_places(question)]


def number_places(question: str) -> list[NumberPlace]:
    """Return the numbers of a question with their places, as `numbers_of` does.

    Args:
        question: any text; its first 4,096 characters are read.
    """
    text = question[:MAX_QUESTION].lower()
    found: list[NumberPlace] = []
    for match in _DIGITS.finditer(text):
        value = parse_number(match.group().replace(",", ""))
        if value is not None:
            found.append(NumberPlace(*match.span(), value, is_digits=True))
    for match in _WORD.finditer(text):
        tens, _, ones = match.group().replace(" ", "-").rpartition("-")
        if ones in _WORDS and tens in (*_TENS, ""):
            found.append(NumberPlace(*match.span(), Fraction(_WORDS[ones] + _WORDS.get(tens, 0)), is_digits=False))
    return sorted(found, key=lambda place: place.start)


def parse_number(text: str) -> Fraction | None:
    """Return the value of digits with an optional sign and decimals, or None if the text is anything else.

    Args:
        text: at most 12 digits on each side of the point.
    """
    found = _PLAIN.fullmatch(text)
    return Fraction(text) if found is not None else None


_PLAIN = re.compile(rf"-?(?:[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,{MAX_DIGITS}}})?|\.[0-9]{{1,{MAX_DIGITS}}})")


def write_number(value: Fraction) -> str | None:
    """Return a number with as few decimals as it needs; None if it needs more than six, or is too large.

    Example:
        >>> write_number(Fraction(5, 2)), write_number(Fraction(28)), write_number(Fraction(1, 3))
        ('2.5', '28', None)
    """
    scaled = value * 10**MAX_PLACES
    if scaled.denominator != 1 or abs(value) >= 10**MAX_DIGITS:
        return None
    sign, digits = "-" if value < 0 else "", f"{abs(scaled.numerator):0{MAX_PLACES + 1}d}"
    return f"{sign}{digits[:-MAX_PLACES]}.{digits[-MAX_PLACES:]}".rstrip("0").rstrip(".")
