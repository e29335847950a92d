"""Rewards and graders outside the module tree: what they contain is neither trained nor saved with the policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import Example, TextEpisodes
from ippo_lightning.rewards.call import call_in_parts
from ippo_lightning.rewards.evaluation_mode import evaluation_mode
from ippo_lightning.rewards.part_metrics import part_metrics
from ippo_lightning.rewards.process_state import process_state_kept
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.tasks import Grade, Grader, Row, call_grader, call_grader_on_all, callable_name, check_grader
from ippo_lightning.tasks.names import takes


class HeldReward:
    """Keeps a reward for a LightningModule, and calls it with `call_reward`.

    torch registers every `nn.Module` that is set as an attribute: its parameters would be in the optimizer and in each
    checkpoint, `train()` would switch its dropout on, and DDP would wait for its gradients. This is a plain class, so
    torch does not look inside. A reward model therefore also stays on the device where you put it.

    Args:
        reward: a function, an object, or an `nn.Module`.
        timeout: of each call, see `call_reward`.

    Raises:
        UserError: not callable with three arguments, or the limit is not above 0.
    """

    def __init__(self, reward: Reward, *, timeout: float | None = None) -> None:
        if not callable(reward):
            name = callable_name(reward)
            raise UserError(f"model.reward: {name} is not callable; expected reward(prompts, responses, examples)")
        if not takes(reward, 3):
            raise UserError(
                f"model.reward: {callable_name(reward)} does not take three arguments; expected "
                "reward(prompts, responses, examples)"
            )
        if timeout is not None:
            require_range("model.reward_timeout", timeout, above=0, below=math.inf)
        self.reward = reward
        self.timeout = timeout
        self.last_parts: dict[str, Tensor] = {}
        """Of the last call, or of several that were joined, shape [rows] each; empty for a reward without parts."""

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        allow_nonfinite: bool = False,
        episodes: TextEpisodes | None = None,
        grader: Grader | None = None,
        joins_parts: bool = False,
    ) -> Tensor:
        """Return one reward per episode, shape [rows], float32, on the CPU; see `call_in_parts`.

        Args:
            prompts: see `call_in_parts`, as all arguments but the last.
            responses: see there.
            examples: see there.
            allow_nonfinite: see there.
            episodes: see there.
            grader: see there.
            joins_parts: whether the reward's parts of earlier calls are kept, and those of this call are added.
        """
        called = call_in_parts(
            self.reward,
            (prompts, responses, examples),
            allow_nonfinite=allow_nonfinite,
            timeout=self.timeout,
            episodes=episodes,
            grader=grader,
        )
        earlier = self.last_parts if joins_parts else {}
        self.last_parts = {
            name: torch.cat([parts[name] for parts in (earlier, called.parts) if name in parts])
            for name in {**earlier, **called.parts}
        }
        return called.total

    @property
    def needs_rollout(self) -> bool:
        """Whether the reward cannot be called with texts only, as an evaluation calls it."""
        return bool(getattr(self.reward, "needs_rollout", False))

    def is_measured(self, grader: HeldGrader | None) -> bool:
        """Return whether an evaluation calls the reward.

        Not if it needs a rollout, or has the attribute `in_evaluation = False`; nor if it is the grade of the run's
        grader, because that is the exact match.

        Args:
            grader: of the run.
        """
        if self.needs_rollout or not getattr(self.reward, "in_evaluation", True):
            return False
        return grader is None or not self.is_grade_of(grader)

    def is_grade_of(self, grader: HeldGrader) -> bool:
        """Return whether the reward is the exact match of a grader: 1.0 for a right response, 0.0 for a wrong one.

        Args:
            grader: of the run.
        """
        # Of the reward's own class: a subclass may return other numbers and inherits the method all the same.
        is_grade_of = vars(type(self.reward)).get("is_grade_of")
        return callable(is_grade_of) and bool(is_grade_of(self.reward, grader))

    def take_parts(self) -> dict[str, Tensor]:
        """Return the parts in `last_parts`, of each call once; shape [rows] each, empty for a reward without parts."""
        parts, self.last_parts = self.last_parts, {}
        return parts

    def take_metrics(self) -> dict[str, float]:
        """Return the means of the parts in `last_parts` for the log, over all ranks; each call of a reward once."""
        return part_metrics(self.take_parts())


class HeldGrader:
    """Keeps a grader for a LightningModule, as `HeldReward` keeps a reward; a call returns a `Grade`.

    Args:
        grader: a function, an object, or an `nn.Module`.

    Raises:
        UserError: not callable with three arguments.
    """

    def __init__(self, grader: Grader) -> None:
        if not callable(grader):
            name = callable_name(grader)
            raise UserError(f"model.grader: {name} is not callable; expected grader(prompt, response, example)")
        if not takes(grader, 3):
            raise UserError(
                f"model.grader: {callable_name(grader)} does not take three arguments; expected "
                "grader(prompt, response, example)"
            )
        self.grader = grader
        # Messages name the user's grader, not this object around it.
        self.__qualname__, self.__module__ = callable_name(grader).rpartition(".")[::-2]

    def __call__(self, prompt: str, response: str, example: Example) -> Grade:
        """Return the grade of one response.

        Raises:
            UserError: the grader raised, or returned something other than a grade.
        """
        # A grader may be a model: dropout would change its grades from call to call.
        with process_state_kept(), evaluation_mode(self.grader):
            return call_grader(self.grader, prompt, response, example)

    def grade_groups(
        self, prompts: Sequence[str], groups: Sequence[Sequence[str]], examples: Sequence[Example]
    ) -> list[list[Grade]]:
        """Return the grades of the responses to each prompt, in groups as they come.

        Args:
            prompts: one per group.
            groups: responses to each prompt.
            examples: one per group.

        Raises:
            UserError: the grader raised, or returned something other than a grade.
        """
        triples = zip(prompts, groups, examples, strict=True)
        rows = [(prompt, response, example) for prompt, group, example in triples for response in group]
        with process_state_kept(), evaluation_mode(self.grader):
            grades = iter(call_grader_on_all(self.grader, rows))
        return [[next(grades) for _ in group] for group in groups]

    def check(self, rows: Iterable[Row]) -> None:
        """Call the grader on the first two rows, see `check_grader`."""
        with process_state_kept(), evaluation_mode(self.grader):
            check_grader(self.grader, rows)
