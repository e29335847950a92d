"""Several rewards with weights, each logged by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import Example, TextEpisodes
from ippo_lightning.rewards.call import MAX_PARTS, call_in_parts, is_part_name
from ippo_lightning.rewards.held import HeldGrader, HeldReward
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.tasks import Grader


class CombinedReward:
    """The weighted sum of rewards; `rollout/reward/<name>` in the log is the mean of a reward times its weight.

    Args:
        rewards: by name; `TaskGrade` is the grade.
        weights: by the same names, finite; 1.0 for those that are left out.

    Raises:
        UserError: no rewards, more than 32, a name that is no short word, or a weight without a reward.

    Example:
        >>> reward = CombinedReward({"short": lambda p, r, e: [-len(text) for text in r]}, {"short": 0.5})
        >>> reward(["2+2?"], ["four"], [{}])
        {'short': tensor([-2.])}
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None) -> None:
        if not isinstance(rewards, Mapping) or not 1 <= len(rewards) <= MAX_PARTS:
            raise UserError(f"reward.rewards: {rewards!r:.60} is wrong; expected 1 to {MAX_PARTS} rewards by name")
        for name in rewards:
            if not is_part_name(name):
                raise UserError(f"reward.rewards: {name!r:.60} is no name; expected letters, digits, _ - .")
        for name, weight in (weights or {}).items():
            if name not in rewards:
                raise UserError(f"reward.weights.{name}: no reward has this name; expected {', '.join(rewards)}")
            require_range(f"reward.weights.{name}", weight, above=-math.inf, below=math.inf)
        # Held, so that one that cannot be called is named before the first iteration.
        self.rewards = {name: HeldReward(reward) for name, reward in rewards.items()}
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in rewards}

    @property
    def needs_rollout(self) -> bool:
        """Whether one of the rewards cannot be called with texts only."""
        return any(held.needs_rollout for held in self.rewards.values())

    @property
    def in_evaluation(self) -> bool:
        """Whether each of the rewards may be called in an evaluation."""
        return all(getattr(held.reward, "in_evaluation", True) for held in self.rewards.values())

    def is_grade_of(self, grader: HeldGrader) -> bool:
        """Return whether the sum is the exact match of a grader, and nothing else."""
        found = [(held, self.weights[name]) for name, held in self.rewards.items()]
        return len(found) == 1 and found[0][1] == 1.0 and found[0][0].is_grade_of(grader)

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        episodes: TextEpisodes | None = None,
        grader: Grader | None = None,
    ) -> dict[str, Tensor]:
        """Return each reward times its weight, shape [rows]; they add up to the reward.

        Args:
            prompts: one per episode.
            responses: one per episode.
            examples: one per episode.
            episodes: of the rollout, for the rewards that read more than texts.
            grader: of the run, for `TaskGrade`.
        """
        texts = (prompts, responses, examples)
        found = {}
        for name, held in self.rewards.items():
            # NaN and infinity are the outer call's to judge, which names the part.
            called = call_in_parts(held.reward, texts, allow_nonfinite=True, episodes=episodes, grader=grader)
            found[name] = self.weights[name] * called.total
        return found
