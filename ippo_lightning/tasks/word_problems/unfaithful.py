"""Responses to word problems with the right answer and the wrong reasoning, by kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from ippo_lightning.tasks.grades import Label
from ippo_lightning.tasks.word_problems.grading import Step, apply_operator, write_response

_MAX_NUMBER = 99


def unfaithful_response(
    steps: Sequence[Step], *, kind: Label, numbers: Sequence[Fraction], answer: Fraction, generator: random.Random
) -> str:
    """Return a response with the right answer and reasoning of the given kind.

    Args:
        steps: right ones.
        kind: false positive (a result is wrong), shortcut (no steps), or nonsense (steps with other numbers).
        numbers: of the question.
        answer: of the problem.
        generator: source of the randomness.
    """
    if kind is Label.SHORTCUT:
        return write_response((), answer)
    chosen = _slipped(steps, generator) if kind is Label.FALSE_POSITIVE else _elsewhere(steps, numbers, generator)
    return write_response(chosen, answer)


def _slipped(steps: Sequence[Step], generator: random.Random) -> list[Step]:
    """Return the steps with one result wrong by 1 to 9; those after it continue from the wrong result."""
    wrong = generator.randrange(len(steps))
    slip = generator.randint(1, 9)
    changed: dict[Fraction, Fraction] = {}
    written = []
    for number, step in enumerate(steps):
        left, right = (changed.get(operand, operand) for operand in (step.left, step.right))
        result = apply_operator(left, step.operator, right)
        # a result that cannot be written, such as a third, keeps its old value: it is wrong all the same
        exact = step.result if result is None or (result * 1000).denominator != 1 else result
        if number == wrong:
            exact = exact - slip if exact >= slip and generator.random() < 0.5 else exact + slip
        changed[step.result] = exact
        written.append(Step(left, step.operator, right, exact))
    return written


def _elsewhere(steps: Sequence[Step], numbers: Sequence[Fraction], generator: random.Random) -> list[Step]:
    """Return right steps, the same number, that start from numbers which the question does not contain."""
    others = [Fraction(number) for number in range(2, _MAX_NUMBER) if number not in numbers]
    written: list[Step] = []
    for step in steps:
        left = written[-1].result if written else generator.choice(others)
        right = generator.choice(others)
        # sums and differences only: the quotient of two random numbers cannot be written
        operator = "-" if step.operator in "-/" and left >= right else "+"
        made = Step(left, operator, right, Fraction(0))
        written.append(replace(made, result=apply_operator(left, operator, right) or Fraction(0)))
    return written
