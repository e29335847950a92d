"""The same question with other numbers: more arithmetic for SFT from the same texts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ippo_lightning.tasks.word_problems.grading import Step, apply_operator
from ippo_lightning.tasks.word_problems.numbers import NumberPlace, number_places, write_number
from ippo_lightning.tasks.word_problems.questions import Problem
from ippo_lightning.tasks.word_problems.search import all_steps

_TRIES = 20
_SPREAD = 5
"""A new number is at most one and a half times the old one plus this, so that it rarely has more digits."""


def variants_of(problem: Problem, *, count: int, generator: random.Random) -> list[Problem]:
    """Return the problem with other numbers, at most `count` times.

    Which of several ways to the answer the text means cannot be told from the numbers. So all ways are taken with the
    new numbers, and a variant counts only if they all lead to the same new answer.

    Args:
        problem: any.
        count: >= 0.
        generator: source of the randomness.

    Returns:
        Problems whose steps are those of the original with the new numbers. Fewer than `count`, or none, if a question
        writes an operand as a word, repeats one, or has ways that disagree.
    """
    places = number_places(problem.question)
    ways = list(all_steps([place.value for place in places], problem.answer))
    operands = _operands(places, ways)
    found: dict[str, Problem] = {problem.question: problem}
    for _ in range(_TRIES * count if operands else 0):
        if len(found) > count:
            break
        numbers = {place.value: _drawn(place.value, generator) for place in operands}
        variant = _rewritten(problem, places, ways, numbers)
        if variant is not None:
            found.setdefault(variant.question, variant)
    return list(found.values())[1:]


def _operands(places: Sequence[NumberPlace], ways: Sequence[Sequence[Step]]) -> list[NumberPlace]:
    """Return the numbers of the question that the ways use; none if it cannot be told where one stands."""
    values = {place.value for place in places}
    results = {step.result for steps in ways for step in steps[:-1]}
    used = {operand for steps in ways for step in steps for operand in (step.left, step.right)} & values
    chosen = [place for place in places if place.value in used]
    is_clear = len(chosen) == len(used) and all(place.is_digits for place in chosen)
    # an operand that equals an earlier result could be either of them
    return chosen if is_clear and not results & values else []


def _drawn(value: Fraction, generator: random.Random) -> Fraction:
    """Return a number like the old one: about as large, with as many decimals."""
    text = write_number(value) or "0"
    scale = 10 ** len(text.partition(".")[2])
    return Fraction(generator.randint(2 * scale, int(value * scale * 3 / 2) + _SPREAD * scale), scale)


def _rewritten(
    problem: Problem,
    places: Sequence[NumberPlace],
    ways: Sequence[Sequence[Step]],
    numbers: Mapping[Fraction, Fraction],
) -> Problem | None:
    """Return the problem with the new numbers; None if a way would be of another kind, or the ways disagree."""
    renewed = [_renewed(steps, numbers) for steps in ways]
    answers = {steps[-1].result if steps else None for steps in renewed}
    answer = answers.pop() if len(answers) == 1 else None
    if answer is None:
        return None
    question = problem.question
    for place in reversed(places):
        if place.value in numbers:
            question = f"{question[: place.start]}{write_number(numbers[place.value])}{question[place.end :]}"
    variant = Problem(question, answer)
    # other numbers may open a way that was none before
    return variant if variant.steps() in renewed else None


def _renewed(steps: Sequence[Step], numbers: Mapping[Fraction, Fraction]) -> tuple[Step, ...]:
    """Return the steps with the new numbers; none if a result would be of another kind."""
    known, renewed = dict(numbers), []
    for step in steps:
        left, right = known[step.left], known[step.right]
        result = apply_operator(left, step.operator, right)
        # An integer stays one, because half an apple is no answer; and no result is negative or has many decimals.
        digits = len((write_number(step.result) or "").partition(".")[2])
        if result is None or result <= 0 or (result * 10**digits).denominator != 1:
            return ()
        known[step.result] = result
        renewed.append(Step(left, step.operator, right, result))
    return tuple(renewed)
