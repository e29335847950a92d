"""Drawing arithmetic problems and demonstrations, by seed, no problem twice."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.reasoning import UNFAITHFUL_KINDS, ArithmeticProblem, Label, unfaithful_response


@dataclass(frozen=True, kw_only=True)
class ProblemSpace:
    """Which problems there are.

    Args:
        min_terms: at least 2.
        max_terms: at least `min_terms`.
        min_number: smallest term, at least 0.
        max_number: largest term.
        operators: any of `+`, `-`, `*`.

    Raises:
        UserError: bounds the wrong way round, or an unknown operator.
    """

    min_terms: int
    max_terms: int
    min_number: int
    max_number: int
    operators: str

    def __post_init__(self) -> None:
        if not 2 <= self.min_terms <= self.max_terms:
            raise UserError(f"data.min_terms: {self.min_terms} is wrong; expected 2 <= min_terms <= max_terms")
        if not 0 <= self.min_number <= self.max_number:
            raise UserError(f"data.min_number: {self.min_number} is wrong; expected 0 <= min_number <= max_number")
        if not self.operators or set(self.operators) - set("+-*"):
            raise UserError(f"data.operators: {self.operators!r} is wrong; expected some of + - *")

    def size(self, num_terms: int) -> int:
        """Return how many different problems with so many terms there are."""
        numbers = self.max_number - self.min_number + 1
        return int(numbers**num_terms * len(set(self.operators)) ** (num_terms - 1))

    def draw(self, count: int, generator: random.Random) -> list[ArithmeticProblem]:
        """Return `count` different problems, the number of terms uniform as long as there are enough.

        Raises:
            UserError: fewer problems exist.
        """
        lengths = range(self.min_terms, self.max_terms + 1)
        left = {length: self.size(length) for length in lengths}
        if sum(left.values()) < count:
            raise UserError(
                f"data: {count} different problems are asked for, and only {sum(left.values())} exist; "
                "ask for fewer, or widen min_terms..max_terms or min_number..max_number"
            )
        chosen: dict[ArithmeticProblem, None] = {}  # keeps the order
        while len(chosen) < count:
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
    """Return a problem as a prompt with its answer."""
    return {"prompt": problem.prompt, "example": {"problem": problem.prompt, "answer": str(problem.answer)}}


def demonstration_rows(
    problems: Sequence[ArithmeticProblem],
    *,
    unfaithful_share: float,
    unfaithful_kinds: Mapping[str, float] | None,
    generator: random.Random,
) -> list[dict[str, Any]]:
    """Return one demonstration a problem, a given share of them unfaithful, exactly but for rounding.

    Args:
        problems: at least one.
        unfaithful_share: in [0, 1].
        unfaithful_kinds: weight of each kind among them; None for equal ones.
        generator: decides which and how.

    Raises:
        UserError: a share out of its range, an unknown kind, a negative weight, or none above 0.
    """
    if not 0 <= unfaithful_share <= 1:
        raise UserError(f"data.unfaithful_share: {unfaithful_share} is out of range; expected a share in [0, 1]")
    kinds, weights = _kinds(unfaithful_kinds)
    unfaithful = set(generator.sample(range(len(problems)), round(unfaithful_share * len(problems))))
    rows = []
    for index, problem in enumerate(problems):
        label, response = Label.FAITHFUL, problem.faithful_response()
        if index in unfaithful:
            label = generator.choices(kinds, weights)[0]
            response = unfaithful_response(problem, label, generator)
        row = prompt_row(problem)
        rows.append({**row, "response": response, "example": {**row["example"], "label": label.value}})
    return rows


def _kinds(given: Mapping[str, float] | None) -> tuple[list[Label], list[float]]:
    if given is None:
        return list(UNFAITHFUL_KINDS), [1.0] * len(UNFAITHFUL_KINDS)
    known = {kind.value: kind for kind in UNFAITHFUL_KINDS}
    unknown = sorted(set(given) - set(known))
    if unknown or not given:
        raise UserError(
            f"data.unfaithful_kinds: {unknown or 'nothing'} is unknown; expected some of {', '.join(known)}"
        )
    if min(given.values()) < 0 or sum(given.values()) <= 0:
        raise UserError(f"data.unfaithful_kinds: {dict(given)} is wrong; expected weights >= 0, one of them above 0")
    return [known[name] for name in given], [float(weight) for weight in given.values()]
