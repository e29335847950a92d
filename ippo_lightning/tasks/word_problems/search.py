"""Steps that lead from the numbers of a question to its answer, found by trying all of one and two steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from ippo_lightning.tasks.word_problems.grading import Step, apply_operator
from ippo_lightning.tasks.word_problems.numbers import write_number

OPERATORS = "+-*/"
MAX_NUMBERS = 8
"""Numbers of a question that are tried, the first ones; bounds the time of a search."""


def find_steps(numbers: Sequence[Fraction], answer: Fraction) -> tuple[Step, ...] | None:
    """Return the first way of one step, or else of two, whose last result is the answer; None if there is none.

    Operands are numbers of the question, each used at most once, and results of earlier steps. A second step uses the
    result of the first. Whether a way is the one that the text means cannot be told from the numbers.

    Args:
        numbers: of the question, in their order.
        answer: of the problem.

    Example:
        >>> [str(step) for step in find_steps([Fraction(23), Fraction(5), Fraction(12)], Fraction(16))]
        ['23+5=28', '28-12=16']
    """
    return next(all_steps(numbers, answer), None)


def all_steps(numbers: Sequence[Fraction], answer: Fraction) -> Iterator[tuple[Step, ...]]:
    """Yield every way of one step, then every way of two; see `find_steps`.

    Args:
        numbers: of the question, in their order.
        answer: of the problem.
    """
    tried = list(numbers[:MAX_NUMBERS])
    for step, _ in _first_steps(tried):
        if step.result == answer:
            yield (step,)
    for first, rest in _first_steps(tried):
        for other in rest:
            for second in _between(first.result, other):
                if second.result == answer:
                    yield (first, second)


def _first_steps(numbers: Sequence[Fraction]) -> Iterator[tuple[Step, list[Fraction]]]:
    """Yield each step between two of the numbers, and the numbers that it leaves."""
    places = range(len(numbers))
    for one, other in itertools.combinations(places, 2):
        rest = [numbers[place] for place in places if place not in (one, other)]
        for step in _between(numbers[one], numbers[other]):
            yield step, rest


def _between(one: Fraction, other: Fraction) -> Iterator[Step]:
    """Yield the steps between two numbers, in either order where it matters; only those that can be written."""
    for operator in OPERATORS:
        for left, right in ((one, other), (other, one)) if operator in "-/" else ((one, other),):
            result = apply_operator(left, operator, right)
            # problems of this kind have no negative numbers, and a way through them is not the meant one
            if result is not None and result >= 0 and write_number(result) is not None:
                yield Step(left, operator, right, result)
