"""Steps such as `23+5=28`, one per line, then `#### 28`; and an exact grader that parses and never evaluates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.grades import Grade, Label
from ippo_lightning.tasks.word_problems.numbers import MAX_DIGITS, numbers_of, parse_number, write_number

MAX_LENGTH = 4096
"""Characters of a response; a longer one is not read and counts as a wrong answer."""
MAX_STEPS = 16
"""Steps of a response; more are nonsense."""
MARK = "####"

_NUMBER = rf"-?[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,{MAX_DIGITS}}})?"
_STEP = re.compile(rf"({_NUMBER}) ?([+\-*/]) ?({_NUMBER}) ?= ?({_NUMBER})")


@dataclass(frozen=True, slots=True)
class Step:
    """One `left operator right = result`, with exact numbers."""

    left: Fraction
    operator: str
    right: Fraction
    result: Fraction

    @property
    def is_right(self) -> bool:
        """Whether the result is right."""
        return apply_operator(self.left, self.operator, self.right) == self.result

    def __str__(self) -> str:
        left, right, result = (write_number(number) for number in (self.left, self.right, self.result))
        return f"{left}{self.operator}{right}={result}"


def apply_operator(left: Fraction, operator: str, right: Fraction) -> Fraction | None:
    """Return left operator right for `+`, `-`, `*` and `/`; None for a division by zero."""
    if operator == "/":
        return left / right if right else None
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right


def write_response(steps: Sequence[Step], answer: Fraction) -> str:
    """Return steps and answer in the form that the grader reads."""
    return "\n".join([*map(str, steps), f"{MARK} {write_number(answer)}"])


def grade_word_problem(prompt: str, response: str | bytes, example: Mapping[str, Any]) -> Grade:
    """Grade a response to a word problem, in time linear in its length.

    The answer is the number after the last `####`. If it is right, the lines before it decide about the label:

    - no line: shortcut;
    - every line is a step, each operand is a number of the question or the result of an earlier step, every result is
      right, and the last one is the answer: faithful;
    - steps with such operands, but a result is wrong, or the last one is not the answer: false positive;
    - anything else, such as an operand from nowhere, or a line that is not a step: nonsense.

    Args:
        prompt: ignored; a template may have put other numbers into it.
        response: any text; bytes are read as Latin-1. More than 4,096 characters are a wrong answer.
        example: `question`, and `answer`, the number as text.

    Returns:
        Label, answer and whether it is right.

    Raises:
        UserError: the example lacks the question, or a number as answer.
    """
    question, reference = example.get("question"), parse_number(str(example.get("answer")))
    if not isinstance(question, str) or reference is None:
        raise UserError(f"example: {str(dict(example))[:60]} lacks question or a number as answer; expected both")
    text = response.decode("latin-1") if isinstance(response, bytes) else response
    body, mark, tail = text.rpartition(MARK) if len(text) <= MAX_LENGTH else ("", "", "")
    answer = parse_number(tail.strip()) if mark else None
    if answer is None:
        return Grade(False, Label.WRONG_ANSWER, None)
    if answer != reference:
        return Grade(False, Label.WRONG_ANSWER, write_number(answer))
    return Grade(True, _label_steps(body.strip(), numbers_of(question), answer), write_number(answer))


def _label_steps(body: str, numbers: Sequence[Fraction], answer: Fraction) -> Label:
    """Return the label of the text before a right answer."""
    if not body:
        return Label.SHORTCUT
    steps = parse_steps(body)
    if steps is None:
        return Label.NONSENSE
    known = set(numbers)
    for step in steps:
        if not {step.left, step.right} <= known:
            return Label.NONSENSE
        known.add(step.result)
    is_faithful = all(step.is_right for step in steps) and steps[-1].result == answer
    return Label.FAITHFUL if is_faithful else Label.FALSE_POSITIVE


def parse_steps(body: str) -> list[Step] | None:
    """Return the steps of a text, one per line; None if a line is not a step, or there are more than 16."""
    lines = body.split("\n")
    found = [_STEP.fullmatch(line.strip()) for line in lines[: MAX_STEPS + 1]]
    if len(lines) > MAX_STEPS:
        return None
    steps = []
    for match in found:
        if match is None:
            return None
        left, operator, right, result = match.groups()
        steps.append(Step(Fraction(left), operator, Fraction(right), Fraction(result)))
    return steps
