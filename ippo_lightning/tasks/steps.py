"""Checks of the arithmetic in worked answers: `<<48/2=24>>`, and plain `48 / 2 = 24` in running text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

from ippo_lightning.tasks.grades import Label
from ippo_lightning.tasks.gsm8k.expressions import ExpressionError, calculate, decimals
from ippo_lightning.tasks.word_problems.numbers import numbers_of

StepForm = Literal["annotations", "plain", "both"]
"""Where steps stand: in `<<...>>`, in running text, or in both."""

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
# The characters of an expression, and before the last of them the equals sign. Bounded, and tried at each equals sign
# only, so that the time stays linear in the length of the text.
_SIDE = 120
_EXPRESSION = "0123456789.,$()+-*/ "
_OPERATORS = (" x", " X")
_PAUSE = re.compile(r"[.,] +")
# What goes on after the number is no result but the next expression, or a mixed fraction.
_RIGHT = re.compile(
    r" *(-?)\$? *([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]{1,18})?|[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})"
    r"(?! *[0-9+*/^%(\-]| ?[a-z]?[0-9(]|[.,][0-9])"
)
# It begins with a number or a bracket: one that begins with an operator is the rest of an expression with words.
_OPERATION = re.compile(r"[(]*[0-9.]+[) ]*[+\-*/]")
_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_OPERAND = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_SIGNS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "\u22c5": "*"})
_TIMES = re.compile(r"(?<=[0-9)]) ?[xX] ?(?=[0-9(])")


def label_steps(text: str, form: StepForm, *, question: str | None = None) -> Label:
    """Return the label of the steps before a right answer, in time linear in the length of the text.

    - no step: shortcut;
    - an annotation that cannot be read or is not closed, or with a `question` a number that is neither in it nor the
      result of an earlier step: nonsense;
    - a step whose result is wrong: false positive;
    - else: faithful.

    A result is right if it is exact, or rounded to its decimals. Running text has steps where numbers, operators and
    brackets stand to the left of an equals sign; words between them end the expression. What does not form one is no
    step.

    Args:
        text: a response with a right answer.
        form: which steps count.
        question: the numbers that steps may begin with; None allows any.
    """
    if form != "plain" and not _is_balanced(text):
        return Label.NONSENSE
    known = None if question is None else {abs(number) for number in numbers_of(question)}
    count, is_right = 0, True
    for expression, result in _steps(text, form):
        count += 1
        try:
            if not _is_from(expression, result, known):
                return Label.NONSENSE
            # Each step is read, also behind a wrong one: it may be nonsense.
            is_right = is_right_step(expression, result) and is_right
        except ExpressionError:
            return Label.NONSENSE
    if count == 0:
        return Label.SHORTCUT
    return Label.FAITHFUL if is_right else Label.FALSE_POSITIVE


def is_right_step(expression: str, result: str) -> bool:
    """Return whether an expression has the result, exactly, or rounded to the decimals of the result.

    Args:
        expression: numbers, `+ - * / //` and brackets; see `calculate`.
        result: the same.

    Raises:
        ExpressionError: one of them is no such expression.
    """
    value, given = calculate(expression), calculate(result)
    # a division by zero can be read, so it is a wrong step and not nonsense
    if value is None or given is None:
        return False
    places = decimals(result)
    # people write 2/3 = 0.67; without decimals the result has to be exact
    half_a_unit = Fraction(1, 2 * 10**places) if places else Fraction(0)
    return abs(value - given) <= half_a_unit


def _is_balanced(text: str) -> bool:
    return max(text.count("<<"), text.count(">>")) <= len(_ANNOTATION.findall(text))


def _steps(text: str, form: StepForm) -> Iterator[tuple[str, str]]:
    """Yield the expression and the result of each step: those of annotations, then those of the text around them."""
    if form != "plain":
        for annotation in _ANNOTATION.findall(text):
            expression, _, result = annotation.partition("=")
            yield expression, result
    if form != "annotations":
        # An annotation stands between an equals sign and its result, so without it the text has the same step again.
        yield from _plain_steps(_ANNOTATION.sub("", text))


def _plain_steps(text: str) -> Iterator[tuple[str, str]]:
    text = _TIMES.sub("*", text.translate(_SIGNS))
    place = text.find("=")
    while place >= 0:
        expression, right = _expression_before(text, place), _RIGHT.match(text, place + 1)
        if right is not None and _OPERATION.match(expression) and _reads(expression):
            yield expression, right[1] + right[2].replace(",", "")
        place = text.find("=", place + 1)


def _expression_before(text: str, place: int) -> str:
    """Return the numbers, operators and brackets before a place; "" if they go on to the left as words."""
    side = text[max(place - _SIDE, 0) : place]
    length = len(side) - len(side.rstrip(_EXPRESSION))
    before, found = side[: len(side) - length], side[len(side) - length :]
    is_cut = length == _SIDE or before[-1:] in ("%", "^")
    # 3n+2=5, and "4 apples x 2 + 1 = 9", where the x is an operator.
    if is_cut or before[-2:] in _OPERATORS or (before[-1:].isalnum() and not found.startswith(" ")):
        return ""
    # The words before the expression may end with a comma or a full stop.
    return _COMMA.sub("", _PAUSE.split(found)[-1]).replace("$", "").strip()


def _reads(expression: str) -> bool:
    # In running text, a comma or a bracket before the expression is no mistake of the step.
    try:
        calculate(expression)
    except ExpressionError:
        return False
    return True


def _is_from(expression: str, result: str, known: set[Fraction] | None) -> bool:
    """Return whether all numbers of an expression are known, and add its result to what is known."""
    if known is None:
        return True
    if not all(Fraction(operand.rstrip(".")) in known for operand in _OPERAND.findall(expression)[:64]):
        return False
    value = calculate(result)
    if value is not None:
        known.add(abs(value))
    return True
