"""Responses with the right answer and the wrong reasoning, by kind."""

from __future__ import annotations

import random
from dataclasses import replace

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.arithmetic.grading import ArithmeticProblem, Step, apply_operator, write_response
from ippo_lightning.tasks.grades import Label

UNFAITHFUL_KINDS = (Label.FALSE_POSITIVE, Label.SHORTCUT, Label.NONSENSE)


def unfaithful_response(problem: ArithmeticProblem, kind: Label, generator: random.Random) -> str:
    """Return a response with the right answer and reasoning of the given kind.

    Args:
        problem: the one that is answered.
        kind: false positive, shortcut or nonsense.
        generator: source of the randomness.

    Raises:
        UserError: the kind is another one.
    """
    if kind is Label.SHORTCUT:
        return write_response((), problem.answer)
    if kind is Label.FALSE_POSITIVE:
        return write_response(_with_a_wrong_result(problem, generator), problem.answer)
    if kind is Label.NONSENSE:
        return write_response(_of_another_problem(problem, generator), problem.answer)
    raise UserError(
        f"unfaithful_kinds: '{kind.value}' is not an unfaithful kind; expected false_positive, shortcut, nonsense"
    )


def _with_a_wrong_result(problem: ArithmeticProblem, generator: random.Random) -> tuple[Step, ...]:
    """Return the steps with one result wrong by 1 to 9; the steps after it continue from the wrong result."""
    wrong = generator.randrange(len(problem.operators))
    slip = generator.choice((-1, 1)) * generator.randint(1, 9)
    steps, running = [], problem.terms[0]
    for number, (operator, term) in enumerate(zip(problem.operators, problem.terms[1:], strict=True)):
        step = Step(running, operator, term, apply_operator(running, operator, term))
        if number == wrong:
            step = replace(step, result=step.result + slip)
        steps.append(step)
        running = step.result
    return tuple(steps)


def _of_another_problem(problem: ArithmeticProblem, generator: random.Random) -> tuple[Step, ...]:
    """Return right steps, the same number, of a problem that starts with another number."""
    # terms of the same size as the problem's own, so that length and digits do not give the kind away
    lowest, highest = min(problem.terms), max(*problem.terms, min(problem.terms) + 9)
    first = generator.choice([number for number in range(lowest, highest + 1) if number != problem.terms[0]])
    others = (first, *(generator.randint(lowest, highest) for _ in problem.terms[1:]))
    return replace(problem, terms=others).steps()
