"""Arithmetic chains as a task: which problems there are, and their demonstrations."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.tasks.arithmetic.grading import grade_arithmetic
from ippo_lightning.tasks.arithmetic.problems import ProblemSpace, demonstration_rows, prompt_row, read_kinds
from ippo_lightning.tasks.grades import Grade
from ippo_lightning.tasks.protocol import Row, Split

_MOST_DEMONSTRATIONS = 4096


class ArithmeticTask:
    """Problems such as `7+12-5?`, demonstrations of which a fraction is unfaithful, and clean ones for the filter.

    No problem is in two of the splits training, validation, test and influence. All rows follow from `seed` and the
    numbers below. Give SFT and RL the same `seed` and numbers: with others, one may test what the other trained on.

    Args:
        min_terms: fewest terms of a problem.
        max_terms: most terms. The number of terms is uniform, except that short problems run out.
        min_number: smallest term.
        max_number: largest term.
        operators: any of `+`, `-`, `*`, applied from left to right.
        num_train: training problems.
        num_validation: validation problems.
        num_test: test problems.
        num_demonstrations: demonstrations for SFT, over the first training problems; at most `num_train`. Null for
            4,096, or one per training problem if there are fewer.
        unfaithful_fraction: fraction of the SFT demonstrations that reach the right answer by wrong or missing
            reasoning.
        unfaithful_kinds: weights of `false_positive`, `shortcut` and `nonsense` among them; null for equal weights.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        influence_noise: fraction of those that are unfaithful too.
        seed: of problems and demonstrations.

    Raises:
        UserError: an argument is out of its range; in `rows`, fewer problems exist than the splits need.
    """

    def __init__(
        self,
        *,
        min_terms: int = 2,
        max_terms: int = 4,
        min_number: int = 1,
        max_number: int = 20,
        operators: str = "+-",
        num_train: int = 4096,
        num_validation: int = 256,
        num_test: int = 512,
        num_demonstrations: int | None = None,
        unfaithful_fraction: float = 0.4,
        unfaithful_kinds: dict[str, float] | None = None,
        num_influence_demonstrations: int = 64,
        influence_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        # problems are drawn in this order, so that the test problems do not depend on the size of another split
        self.sizes = {
            "num_test": num_test,
            "num_validation": num_validation,
            "num_influence_demonstrations": num_influence_demonstrations,
            "num_train": num_train,
        }
        for name, size in self.sizes.items():
            require_range(f"task.{name}", size, at_least=0, integer=True)
        # the default follows num_train, so that a small training split is no error
        if num_demonstrations is None:
            num_demonstrations = min(_MOST_DEMONSTRATIONS, num_train)
        require_range("task.num_demonstrations", num_demonstrations, at_least=0, integer=True)
        if num_demonstrations > num_train:
            raise UserError(
                f"task.num_demonstrations: {num_demonstrations} is more than num_train = {num_train}; "
                "expected at most that"
            )
        require_range("task.unfaithful_fraction", unfaithful_fraction, at_least=0, at_most=1)
        require_range("task.influence_noise", influence_noise, at_least=0, at_most=1)
        self.num_demonstrations = num_demonstrations
        self.space = ProblemSpace(
            min_terms=min_terms,
            max_terms=max_terms,
            min_number=min_number,
            max_number=max_number,
            operators=operators,
        )
        self.unfaithful_fraction = unfaithful_fraction
        self.unfaithful_kinds = read_kinds(unfaithful_kinds)
        self.influence_noise = influence_noise
        self.seed = seed

    def rows(self, split: Split) -> Sequence[Row]:
        """Return the rows of a split; the first call draws the problems of all splits.

        Raises:
            UserError: fewer problems exist than the splits need.
        """
        return self._rows[split]

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return label, answer and whether it is right, see `grade_arithmetic`."""
        return grade_arithmetic(prompt, response, example)

    @cached_property
    def _rows(self) -> dict[Split, list[dict[str, Any]]]:
        generator = random.Random(self.seed)
        # one draw for all splits, so that no problem can be in two of them
        chosen = self.space.draw(sum(self.sizes.values()), generator)
        # short problems run out while drawing; after shuffling, no split gets more of them than another
        generator.shuffle(chosen)
        problems = iter(chosen)
        drawn = {name: [next(problems) for _ in range(size)] for name, size in self.sizes.items()}
        return {
            "test": [prompt_row(problem) for problem in drawn["num_test"]],
            "validation": [prompt_row(problem) for problem in drawn["num_validation"]],
            "prompts": [prompt_row(problem) for problem in drawn["num_train"]],
            # a random stream per kind of demonstration: more noise in one leaves the other alone
            "demonstrations": demonstration_rows(
                drawn["num_train"][: self.num_demonstrations],
                unfaithful_fraction=self.unfaithful_fraction,
                unfaithful_kinds=self.unfaithful_kinds,
                generator=random.Random(f"{self.seed} demonstrations"),
            ),
            # a text as seed is hashed by SHA-512 and not by hash(), so all processes draw the same rows
            "influence": demonstration_rows(
                drawn["num_influence_demonstrations"],
                unfaithful_fraction=self.influence_noise,
                unfaithful_kinds=self.unfaithful_kinds,
                generator=random.Random(f"{self.seed} influence"),
            ),
        }
