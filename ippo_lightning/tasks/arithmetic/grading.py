"""Arithmetic chains: `7+12-5?` answered `7+12=19;19-5=14;#14`, and an exact grader that parses and never evaluates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.grades import Grade, Label

MAX_LENGTH = 4096
"""Characters of a response; a longer one is not read and counts as a wrong answer."""

MAX_DIGITS = 18
"""Digits of a number; fits into 64 bits and bounds the time of each conversion."""

# [0-9] and not \d, which also matches digits of other scripts; a bounded number of them, so that int() is quick
_DIGITS = rf"[0-9]{{1,{MAX_DIGITS}}}"
_NUMBER = rf"-?{_DIGITS}"
_ANSWER_LENGTH = MAX_DIGITS + len("#-")
# \Z and not $, which would also match before a newline at the end
_ANSWER = re.compile(rf"#({_NUMBER})\Z")
_STEP = re.compile(rf"({_NUMBER})([+\-*])({_NUMBER})=({_NUMBER})\Z")
_FIRST = re.compile(_DIGITS)
_NEXT = re.compile(rf"([+\-*])({_DIGITS})")


@dataclass(frozen=True, slots=True)
class Step:
    """One `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    @property
    def is_right(self) -> bool:
        """Whether the result is right."""
        return apply_operator(self.left, self.operator, self.right) == self.result

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """A chain of operations, applied from left to right.

    Example:
        >>> problem = ArithmeticProblem((7, 12, 5), ("+", "-"))
        >>> problem.prompt, problem.answer, problem.faithful_response()
        ('7+12-5?', 14, '7+12=19;19-5=14;#14')
    """

    terms: tuple[int, ...]
    """At least two, each >= 0."""
    operators: tuple[str, ...]
    """One fewer; `+`, `-` or `*`, all of the same precedence."""

    @classmethod
    def parse(cls, prompt: str) -> ArithmeticProblem:
        """Return the problem of a prompt.

        Raises:
            UserError: the prompt is not of the form `7+12-5?`.
        """
        text = prompt.strip()[:MAX_LENGTH]
        first = _FIRST.match(text)
        tail = text[first.end() :] if first else ""
        pairs = _NEXT.findall(tail)
        # `findall` skips what does not match, so the parts are compared with the full text.
        if first is None or not pairs or "".join(a + b for a, b in pairs) + "?" != tail:
            raise UserError(f"arithmetic problem: {prompt[:60]!r} is not of the form 7+12-5?")
        return cls((int(first.group()), *(int(number) for _, number in pairs)), tuple(sign for sign, _ in pairs))

    @property
    def prompt(self) -> str:
        """The problem as the policy reads it."""
        rest = "".join(sign + str(term) for sign, term in zip(self.operators, self.terms[1:], strict=True))
        return f"{self.terms[0]}{rest}?"

    @property
    def answer(self) -> int:
        """The result of the last step."""
        return self.steps()[-1].result

    def steps(self) -> tuple[Step, ...]:
        """Return the right steps; each starts from the result of the one before."""
        steps, running = [], self.terms[0]
        for operator, term in zip(self.operators, self.terms[1:], strict=True):
            result = apply_operator(running, operator, term)
            steps.append(Step(running, operator, term, result))
            running = result
        return tuple(steps)

    def faithful_response(self) -> str:
        """Return the right steps and the answer."""
        return write_response(self.steps(), self.answer)


def apply_operator(left: int, operator: str, right: int) -> int:
    """Return left operator right, for `+`, `-` and `*`."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def write_response(steps: tuple[Step, ...], answer: int) -> str:
    """Return steps and answer in the form that the grader reads."""
    return "".join(f"{step};" for step in steps) + f"#{answer}"


def grade_arithmetic(prompt: str, response: str | bytes, example: Mapping[str, Any]) -> Grade:
    """Grade a response to an arithmetic chain, in time linear in its length.

    The answer is the number after `#` at the end. If it is right, the text before it decides about the label:

    - no text: shortcut;
    - exactly the problem's steps, all right: faithful;
    - steps that each continue the problem (operator and right operand are the problem's next ones, in order; the left
      operand is the first term, later the result written in the step before), but a result is wrong, or steps at the
      end are missing: false positive;
    - anything else, such as steps of another problem, a missing step before the last one, more steps than the problem
      has, or text that is not a step: nonsense.

    Numbers are compared as numbers, so `07+12=19` is the step `7+12=19`.

    Args:
        prompt: the problem, `7+12-5?`.
        response: any text; bytes are read as Latin-1. More than 4,096 characters are a wrong answer.
        example: ignored; the prompt contains the problem.

    Returns:
        Label, answer and whether it is right.
    """
    problem = ArithmeticProblem.parse(prompt)
    # Latin-1 has a character for every byte, so no response fails to decode
    text = response.decode("latin-1") if isinstance(response, bytes) else response
    # the answer is at the end, so a search of the last characters costs the same for each response
    found = _ANSWER.search(text[-_ANSWER_LENGTH:]) if len(text) <= MAX_LENGTH else None
    if found is None:
        return Grade(False, Label.WRONG_ANSWER, None)
    answer = int(found.group(1))
    if answer != problem.answer:
        return Grade(False, Label.WRONG_ANSWER, str(answer))
    body = text[: len(text) - len(found.group())]
    return Grade(True, _label_steps(problem, body), str(answer))


def _label_steps(problem: ArithmeticProblem, body: str) -> Label:
    """Return the label of the text before a right answer."""
    if not body:
        return Label.SHORTCUT
    steps = _parse_steps(body)
    if steps is None or len(steps) > len(problem.operators):
        return Label.NONSENSE
    running = problem.terms[0]
    # not strict: a response may leave out steps at the end
    for step, operator, term in zip(steps, problem.operators, problem.terms[1:], strict=False):
        if (step.left, step.operator, step.right) != (running, operator, term):
            return Label.NONSENSE
        # the written result, also a wrong one: the next step has to continue from what the policy wrote
        running = step.result
    is_complete = len(steps) == len(problem.operators)
    return Label.FAITHFUL if is_complete and all(step.is_right for step in steps) else Label.FALSE_POSITIVE


def _parse_steps(body: str) -> list[Step] | None:
    """Return the steps, each with `;` at its end, or None if a part of the text is not a step."""
    if not body.endswith(";"):
        return None
    steps = []
    for part in body[:-1].split(";"):
        found = _STEP.match(part)
        if found is None:
            return None
        left, operator, right, result = found.groups()
        steps.append(Step(int(left), operator, int(right), int(result)))
    return steps
