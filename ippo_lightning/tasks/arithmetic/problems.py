"""Arithmetic problems and demonstrations, drawn by seed, no problem twice."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.arithmetic.grading import MAX_DIGITS, ArithmeticProblem
from ippo_lightning.tasks.arithmetic.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.tasks.grades import Label


@dataclass(frozen=True, kw_only=True)
class ProblemSpace:
    """The problems that can be drawn.

    Args:
        min_terms: at least 2.
        max_terms: at least `min_terms`.
        min_number: smallest term, at least 0.
        max_number: largest term.
        operators: any of `+`, `-`, `*`.

    Raises:
        UserError: a lower bound is above its upper bound, an operator is unknown or given twice, or results may have
            more than 18 digits.
    """

    min_terms: int
    max_terms: int
    min_number: int
    max_number: int
    operators: str

    def __post_init__(self) -> None:
        if not 2 <= self.min_terms <= self.max_terms:
            raise UserError(f"task.min_terms: {self.min_terms} is wrong; expected 2 <= min_terms <= max_terms")
        if not 0 <= self.min_number <= self.max_number:
            raise UserError(f"task.min_number: {self.min_number} is wrong; expected 0 <= min_number <= max_number")
        if not self.operators or set(self.operators) - set("+-*") or len(set(self.operators)) < len(self.operators):
            raise UserError(f"task.operators: {self.operators!r} is wrong; expected some of + - *, each once")
        if self._largest_result() >= 10**MAX_DIGITS:
            raise UserError(
                f"task.max_number: {self.max_number} allows results of more than {MAX_DIGITS} digits, which the grader "
                "does not read; make it or max_terms smaller"
            )

    def _largest_result(self) -> int:
        if "*" in self.operators:
            # at least 2: with terms up to 1, sums are larger than products, and n terms reach n <= 2 ** n
            return int(max(self.max_number, 2) ** self.max_terms)
        return self.max_number * self.max_terms

    def size(self, num_terms: int) -> int:
        """Return how many different problems with this number of terms exist."""
        # 3+4 and 4+3 count as two: their steps differ
        numbers = self.max_number - self.min_number + 1
        return int(numbers**num_terms * len(self.operators) ** (num_terms - 1))

    def draw(self, count: int, generator: random.Random) -> list[ArithmeticProblem]:
        """Return `count` different problems.

        The number of terms is drawn uniformly. A problem that was drawn before is replaced by another draw, of the
        number of terms too, so short problems become rarer as they run out.

        Raises:
            UserError: fewer problems exist.
        """
        lengths = range(self.min_terms, self.max_terms + 1)
        left = {length: self.size(length) for length in lengths}
        # checked first: once no length is left, the choice below would be an IndexError
        if sum(left.values()) < count:
            raise UserError(
                f"task: {count} different problems are needed, and only {sum(left.values())} exist; "
                "use fewer, or widen min_terms..max_terms or min_number..max_number"
            )
        chosen: dict[ArithmeticProblem, None] = {}  # a set would not keep the order of drawing
        while len(chosen) < count:
            # without lengths that ran out: with few problems left, most draws would otherwise be repetitions
            length = generator.choice([length for length in lengths if left[length] > 0])
            problem = ArithmeticProblem(
                tuple(generator.randint(self.min_number, self.max_number) for _ in range(length)),
                tuple(generator.choice(self.operators) for _ in range(length - 1)),
            )
            if problem not in chosen:
                chosen[problem] = None
                left[length] -= 1
        return list(chosen)


def prompt_row(problem: ArithmeticProblem) -> dict[str, Any]:
    """Return the row of a problem: prompt and answer."""
    return {"prompt": problem.prompt, "example": {"problem": problem.prompt, "answer": str(problem.answer)}}


def demonstration_rows(
    problems: Sequence[ArithmeticProblem],
    *,
    unfaithful_fraction: float,
    unfaithful_kinds: Mapping[Label, float],
    generator: random.Random,
) -> list[dict[str, Any]]:
    """Return one demonstration per problem, a given fraction of them unfaithful.

    The number of unfaithful ones is exact, up to rounding.

    Args:
        problems: at least one.
        unfaithful_fraction: in [0, 1].
        unfaithful_kinds: weight of each kind among them.
        generator: decides which are unfaithful, and how.
    """
    # which ones first, then each one's kind and response in order: published rows depend on this order of draws
    kinds, weights = list(unfaithful_kinds), list(unfaithful_kinds.values())
    unfaithful = set(generator.sample(range(len(problems)), round(unfaithful_fraction * len(problems))))
    rows = []
    for index, problem in enumerate(problems):
        label, response = Label.FAITHFUL, problem.faithful_response()
        if index in unfaithful:
            label = generator.choices(kinds, weights)[0]
            response = unfaithful_response(problem, label, generator)
        row = prompt_row(problem)
        rows.append({**row, "response": response, "example": {**row["example"], "label": label.value}})
    return rows


def read_kinds(given: Mapping[str, float] | None) -> dict[Label, float]:
    """Return the weight of each unfaithful kind.

    Args:
        given: weights by name; None for equal ones of all kinds.

    Raises:
        UserError: a kind is unknown, a weight is negative, or none is above 0.
    """
    if given is None:
        return dict.fromkeys(UNFAITHFUL_KINDS, 1.0)
    known = {kind.value: kind for kind in UNFAITHFUL_KINDS}
    unknown = sorted(set(given) - set(known))
    if unknown or not given:
        raise UserError(
            f"task.unfaithful_kinds: {unknown or 'nothing'} is unknown; expected some of {', '.join(known)}"
        )
    weights = [float(weight) for weight in given.values()]
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise UserError(f"task.unfaithful_kinds: {dict(given)} is wrong; expected weights >= 0, one of them above 0")
    # in the order of the user's keys: in another order, the same draw gives another kind
    return dict(zip((known[name] for name in given), weights, strict=True))
