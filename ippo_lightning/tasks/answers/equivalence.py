"""Whether two answers are the same: as numbers, as options, or as mathematics by math-verify."""

from __future__ import annotations

import re
from fractions import Fraction

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.answers.extraction import ANSWER_KINDS, MAX_ANSWER, AnswerKind, as_number, plain_option
from ippo_lightning.tasks.answers.verifier import are_equal

MAX_DEPTH = 30
"""Braces and brackets inside each other; an answer with more is compared as text only."""

# What changes only how an answer looks.
_LOOKS = re.compile(
    r"\\(?:left|right|big|Big|displaystyle|limits)(?![A-Za-z])|\\[,;:! ]|\\quad(?![A-Za-z])|[$~\s]|\\\(|\\\)"
)
_COMMAND = re.compile(r"\\(?:text|mbox|math)[a-z]*\s*\{[^{}]*\}|\\[A-Za-z]+|\{[a-z]+\}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "log", "ln", "exp", "sqrt", "min", "max", "gcd")
)
_BASE = re.compile(r"[0-9A-F]+_\{?[0-9]+\}?")
_OPENING, _CLOSING = "{[(", "}])"


def same_answer(given: str | None, gold: str, kind: AnswerKind) -> bool:
    """Return whether an answer is the right one.

    Numbers are compared exactly, options as texts, and other answers of `hash` and `boxed` by math-verify, in a process
    of its own with a time limit. An answer for which the time or the memory does not suffice is a wrong one.

    Args:
        given: what `extract_answer` returned.
        gold: the right answer, without a mark or a box around it.
        kind: how the response states its answer.

    Raises:
        UserError: the kind is unknown, or math-verify is needed and not installed.

    Example:
        >>> same_answer("1,000", "1000", "number"), same_answer("Cake.", "cake", "option")
        (True, True)
    """
    if kind not in ANSWER_KINDS:
        raise UserError(f"answer kind: {kind!r:.60} is unknown; expected {', '.join(ANSWER_KINDS)}")
    if given is None or len(given) > MAX_ANSWER:
        return False
    if kind == "option":
        return plain_option(given) == plain_option(gold)
    values = as_number(given), as_number(gold)
    if values[0] is not None and values[0] == values[1]:
        return True
    if kind == "number":
        return values == (None, None) and given.strip() == gold.strip()  # ratios and times
    return _is_same_math(given, gold, values)


def _is_same_math(given: str, gold: str, values: tuple[Fraction | None, Fraction | None]) -> bool:
    """Return whether two answers are the same; what is plain needs no other process."""
    # Integers that differ.
    if all(value is not None and value.denominator == 1 for value in values):
        return False
    texts = plain_math(given), plain_math(gold)
    if texts[0] == texts[1]:
        return bool(texts[0])
    if is_prose(gold):
        return texts[0].casefold() == texts[1].casefold()
    if any(map(_differ_in, texts, reversed(texts))):
        return False
    # The parser of math-verify recurses, and the time limit would be all that a deep answer costs.
    if max(map(depth_of, texts)) > MAX_DEPTH or len(gold) > MAX_ANSWER:
        return False
    return are_equal(gold, given)


def is_prose(text: str) -> bool:
    """Return whether an answer is a sentence and no formula: it begins with a word, or has three of them.

    math-verify would compare the last formula of a sentence, and two sentences may share that.

    Args:
        text: the right answer.
    """
    words = [word for word in _WORD.findall(_COMMAND.sub(" ", text)) if word.lower() not in _FUNCTIONS]
    begins = _WORD.match(text.lstrip(" $"))
    # AB=12 begins with the name of a line.
    is_begun = begins is not None and begins[0] in words and not begins[0].isupper()
    return sum(len(word) >= 3 for word in words) >= 3 or (is_begun and plain_math(text) != plain_math(words[0]))


def _differ_in(text: str, other: str) -> bool:
    """Return whether two formulas differ in what math-verify does not see: a leading minus, or the base of a number."""
    # It reads -(1,2) as (1,2). An equation may be the same with another sign on one side.
    if text == f"-{other}" and not any(sign in text for sign in ("=", "\\pm", "<", ">")):
        return True
    bases = _BASE.fullmatch(text), _BASE.fullmatch(other)
    return all(bases) and text != other


def plain_math(text: str) -> str:
    """Return a mathematical answer without what changes only its looks: spaces, dollar signs, sizes of brackets."""
    plain = _LOOKS.sub("", text)
    return plain.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").strip().removesuffix(".")


def depth_of(text: str) -> int:
    """Return how many brackets are open at most, whatever their kind."""
    depth = most = 0
    for letter in text:
        if letter in _OPENING:
            depth += 1
            most = max(most, depth)
        elif letter in _CLOSING:
            depth -= 1
    return most
