"""The default reward: the grade of a response."""

from __future__ import annotations

from collections.abc import Sequence

from ippo_lightning.errors import UserError
from ippo_lightning.records import Example
from ippo_lightning.rewards.held import HeldGrader
from ippo_lightning.tasks import Grader, callable_name


class GradeReward:
    """1.0 for a right response, 0.0 for a wrong one, whatever its label.

    Args:
        grader: called as `grader(prompt, response, example)`; see `ippo_lightning.tasks.as_grade`.

    Example:
        >>> from ippo_lightning.tasks import grade_arithmetic
        >>> GradeReward(grade_arithmetic)(["7+5?"] * 2, ["7+5=12;#12", "#13"], [{}] * 2)
        [1.0, 0.0]
    """

    def __init__(self, grader: Grader) -> None:
        self.grader = grader if isinstance(grader, HeldGrader) else HeldGrader(grader)
        self.__qualname__ = f"GradeReward({callable_name(grader)})"  # the name in messages

    def is_grade_of(self, grader: HeldGrader) -> bool:
        """Return whether the reward is the exact match of a grader."""
        return bool(self.grader.grader == grader.grader)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """Return 1.0 or 0.0 per response.

        Args:
            prompts: one per episode.
            responses: one per episode.
            examples: one per episode.

        Raises:
            UserError: the grader raised, or returned something other than a grade.
        """
        return [
            float(self.grader(prompt, response, example).correct)
            for prompt, response, example in zip(prompts, responses, examples, strict=True)
        ]


class TaskGrade:
    """1.0 for a right response by the grader of the run, 0.0 for a wrong one: the default reward as a part of a sum."""

    def is_grade_of(self, grader: HeldGrader) -> bool:
        """Return True: the reward is the exact match of any grader that the run has."""
        return True

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        grader: Grader | None = None,
    ) -> list[float]:
        """Return 1.0 or 0.0 per response.

        Args:
            prompts: one per episode.
            responses: one per episode.
            examples: one per episode.
            grader: of the run.

        Raises:
            UserError: the run has no grader, or see `GradeReward`.
        """
        if grader is None:
            raise UserError("reward: TaskGrade is the grade of the run, which has no grader; set model.grader")
        return GradeReward(grader)(prompts, responses, examples)


def grade_reward(grader: Grader) -> GradeReward:
    """Return the reward that a grader implies, see `GradeReward`."""
    return GradeReward(grader)
