"""The default reward, which is the grade of a response, and the other way round: a grade from a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import Example
from ippo_lightning.rewards.held import HeldGrader, HeldReward
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.tasks import Grade, Grader, callable_name


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


class RewardGrader:
    """Any reward as a grader: a response is right if its reward is above a limit.

    A run that is rewarded by one model can so be judged by another one. An evaluation calls the reward once for all
    responses of a batch.

    Args:
        reward: such as a `RewardModel`.
        limit: in units of the reward; the response is right above it.

    Raises:
        UserError: the reward cannot be called, or the limit is not finite.

    Example:
        >>> grader = RewardGrader(lambda prompts, responses, examples: [len(text) for text in responses], limit=3)
        >>> grader("", "four", {})
        Grade(correct=True, label=None, answer=None)
    """

    def __init__(self, reward: Reward, *, limit: float = 0.0) -> None:
        require_range("grader.limit", limit, above=-math.inf, below=math.inf)
        self.reward = reward if isinstance(reward, HeldReward) else HeldReward(reward)
        self.limit = limit
        self.__qualname__ = f"RewardGrader({callable_name(reward)})"  # the name in messages

    def __call__(self, prompt: str, response: str, example: Example) -> Grade:
        """Return whether the reward of the response is above the limit.

        Args:
            prompt: what the policy read.
            response: what it wrote.
            example: what the task knows about the prompt.

        Raises:
            UserError: see `ippo_lightning.rewards.call_reward`.
        """
        return self.grade_all([prompt], [response], [example])[0]

    def grade_all(self, prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Return the grade of each response, from one call of the reward.

        Args:
            prompts: one per response.
            responses: what the policy wrote.
            examples: one per response.

        Raises:
            UserError: see `ippo_lightning.rewards.call_reward`.
        """
        return [Grade(reward > self.limit) for reward in self.reward(prompts, responses, examples).tolist()]


def grade_reward(grader: Grader) -> GradeReward:
    """Return the reward that a grader implies, see `GradeReward`."""
    return GradeReward(grader)
