"""The final answer in a response, by the form that a task asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.gsm8k.grading import gsm8k_answer

AnswerKind = Literal["hash", "boxed", "option", "number"]
"""How a response states its answer."""
ANSWER_KINDS: tuple[AnswerKind, ...] = ("hash", "boxed", "option", "number")
MAX_LENGTH = 2**18
"""Characters of a response; a longer one is not read and has no answer."""
MAX_ANSWER = 1000
"""Characters of an answer; a longer one is none."""

_MARK = "####"
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
# An escaped brace is a printed one: \left\{ has no partner in \right.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# [0-9] and not \d, which matches other scripts as well. A sign belongs to a number only if nothing that ends an operand
# stands before it: 16-3 contains 16 and 3. Bounded digits, so that the conversion is quick.
_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3}){1,6}(?:\.[0-9]{1,18})?|[0-9]{0,18}\.[0-9]{1,18}|[0-9]{1,18}"
_SIGN = r"(?<![0-9.,:])((?<![\w)\]])[-\u2212])?[ ]?\$?"
_NUMBER = re.compile(
    rf"{_SIGN}({_DIGITS})(?:/([0-9]{{1,9}})(?![0-9/])|((?::[0-9]{{1,9}})+))?(?![.,:]?[0-9])"  # 3/4, or 3:45
)
_ANSWER_IS = re.compile(r"(?:answer|option|choice)(?: is| would be|:| ?=)[ :]*", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:](?:\s+(.*))?)?", re.DOTALL)


def extract_answer(text: str, kind: AnswerKind, options: Sequence[str] | None = None) -> str | None:
    r"""Return the final answer of a response, in time linear in its length.

    - `hash`: what stands behind the last `####` on its line; a number in canonical form (`1,000.50` is `1000.5`).
    - `boxed`: the content of the last `\boxed{...}` with its matching brace.
    - `option`: what stands behind the last "answer is", "answer:" or `####`, else the last line that is not empty. With
      `options`, one of them: by its text, or by its letter (`(B)`, `B.`, `B`).
    - `number`: the last number of the text; `3/4` is one, and a ratio or a time such as `3:45`.

    Args:
        text: a response; more than 262,144 characters are not read.
        kind: one of the four.
        options: the texts to choose from, for `option`.

    Returns:
        At most 1,000 characters; None if there is no answer.

    Raises:
        UserError: the kind is unknown.

    Example:
        >>> extract_answer(r"so \boxed{\frac{1}{2}}.", "boxed"), extract_answer("It takes 3 hours.", "number")
        ('\\frac{1}{2}', '3')
    """
    if kind not in ANSWER_KINDS:
        raise UserError(f"answer kind: {kind!r:.60} is unknown; expected {', '.join(ANSWER_KINDS)}")
    if len(text) > MAX_LENGTH:
        return None
    if kind == "hash":
        found = _behind_mark(text)
    elif kind == "boxed":
        found = _boxed(text)
    elif kind == "number":
        found = _last_number(text)
    else:
        found = _option(text, options)
    return found if found and len(found) <= MAX_ANSWER else None


def plain_option(text: str) -> str:
    """Return an option without case, quotes, repeated spaces, and the full stop at its end, for a comparison."""
    return " ".join(text.casefold().split()).strip(" \"'`*.,;:!?")


def as_number(text: str) -> Fraction | None:
    """Return the value of a text that is a number and nothing else, such as `-1,000.5`, `$3` or `3/4`; else None.

    Args:
        text: at most 18 digits on each side of the point.
    """
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= MAX_ANSWER else None
    if found is None or found[4] or (found[3] and not int(found[3])):
        return None
    value = Fraction(found[2].replace(",", "")) / int(found[3] or 1)
    return -value if found[1] else value


def write_fraction(value: Fraction) -> str:
    """Return a number as digits with as few decimals as it needs, or as a fraction if no 18 decimals suffice.

    Example:
        >>> write_fraction(Fraction(5, 2)), write_fraction(Fraction(1, 3))
        ('2.5', '1/3')
    """
    places = next((places for places in range(19) if 10**places % value.denominator == 0), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    written = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{written}" if value < 0 else written


def _behind_mark(text: str) -> str | None:
    number = gsm8k_answer(text)
    _, mark, tail = text.rpartition(_MARK)
    if number is not None or not mark:
        return number
    return tail.strip()[: MAX_ANSWER + 1].partition("\n")[0].strip()


def _boxed(text: str) -> str | None:
    start = None
    for found in _BOX.finditer(text):
        start = found.end()
    if start is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()].strip()
    return None  # the response was cut inside its box


def _last_number(text: str) -> str | None:
    last = None
    for found in _NUMBER.finditer(text):
        last = found
    if last is None:
        return None
    if last[4]:
        return f"{'-' if last[1] else ''}{last[2]}{last[4]}"
    value = as_number(last[0])
    return None if value is None else write_fraction(value)


def _option(text: str, options: Sequence[str] | None) -> str | None:
    stated = _stated(text)
    if stated is None or options is None:
        return stated
    plain = plain_option(stated)
    # The text before the letter: an option may itself be the letter of another one.
    for option in options:
        if plain_option(option) == plain:
            return option
    letter = _LETTER.fullmatch(stated.strip(" *\"'`"))
    place = ord(letter[1].upper()) - ord("A") if letter else len(options)
    if letter is None or place >= len(options):
        return stated
    # "B) cake" must name the same option twice.
    named = letter[2]
    return options[place] if named is None or plain_option(named) == plain_option(options[place]) else stated


def _stated(text: str) -> str | None:
    """Return the words that state an answer: behind the last mark of one, else the last line."""
    end = text.rfind(_MARK)
    start = end + len(_MARK) if end >= 0 else None
    for found in _ANSWER_IS.finditer(text):
        start = max(found.end(), start or 0)
    if start is not None:
        words = text[start:].strip()[: MAX_ANSWER + 1].partition("\n")[0].strip()
        if words:
            return words
    lines = text.rstrip().rpartition("\n")
    return lines[2].strip() or None
