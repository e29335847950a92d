"""The reward of training, called in an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import named_rewards
from ippo_lightning.records import Example
from ippo_lightning.rewards import HeldGrader, HeldReward


class MeasuredRewardError(UserError):
    """A reward that failed in an evaluation, where it may see other prompts than in training.

    Args:
        problem: one line, of the call.
        can_be_left_out: whether the evaluation needs no reward, because there is a grader.
        where: the evaluation.
    """

    def __init__(self, problem: str, *, can_be_left_out: bool, where: str = "an evaluation") -> None:
        way_out = "; an attribute `in_evaluation = False` of the reward leaves it out" if can_be_left_out else ""
        super().__init__(f"{problem} (while {where} measured the reward{way_out})")
        self.problem, self.can_be_left_out = problem, can_be_left_out

    def of_split(self, split: str) -> MeasuredRewardError:
        """Return the same error with the name of the split.

        Args:
            split: validation or test.
        """
        where = f"the evaluation of the {split} split"
        return MeasuredRewardError(self.problem, can_be_left_out=self.can_be_left_out, where=where)


def measured_reward(
    reward: HeldReward,
    rows: Sequence[tuple[str, str, Example]],
    *,
    most_rows: int | None,
    grader: HeldGrader | None,
) -> dict[str, Tensor]:
    """Return the reward of each row and its named parts, shape [rows] each, by their names in an evaluation.

    Args:
        reward: called with texts only.
        rows: prompt, response and example; at least one.
        most_rows: of one call, as many as in training: a limit of time or of memory is made for these. None for no
            limit.
        grader: of the run.

    Returns:
        See `ippo_lightning.metrics.named_rewards`; NaN where a call did not return a part that another one returned.

    Raises:
        MeasuredRewardError: see `ippo_lightning.rewards.call_reward`.
    """
    size = most_rows or len(rows)
    calls = [_called(reward, rows[start : start + size], grader) for start in range(0, len(rows), size)]
    names = dict.fromkeys(name for call in calls for name in call)
    missing = [torch.full_like(next(iter(call.values())), math.nan) for call in calls]
    return {name: torch.cat([call.get(name, nan) for call, nan in zip(calls, missing, strict=True)]) for name in names}


def _called(
    reward: HeldReward, rows: Sequence[tuple[str, str, Example]], grader: HeldGrader | None
) -> dict[str, Tensor]:
    prompts, responses, examples = (list(column) for column in zip(*rows, strict=True))
    try:
        rewards = reward(prompts, responses, examples, allow_nonfinite=True, grader=grader)
    except UserError as error:
        raise MeasuredRewardError(str(error), can_be_left_out=grader is not None) from error
    return named_rewards(rewards, reward.take_parts())
