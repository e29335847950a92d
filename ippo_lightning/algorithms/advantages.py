"""Advantage estimators: from rewards, and perhaps values, to what each step is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.errors import require_choice, require_range
from ippo_lightning.maths import (
    Moments,
    gae,
    group_advantages,
    leave_one_out_advantages,
    masked_moments,
    masked_row_sum,
    mean_and_variance,
    response_gae,
    whiten,
)
from ippo_lightning.records import ControlEpisodes, Episodes

Record = TypeVar("Record", bound=Episodes)
Scale = Literal["group", "batch", "none"]


class AdvantageEstimator(ABC):
    """Fills `advantages` and `returns` of episodes whose rewards are known."""

    needs_values: ClassVar[bool] = False
    """Whether it reads the critic's values; without it, a policy needs no critic and may not have one."""
    needs_groups: ClassVar[bool] = False
    """Whether it compares the responses to a prompt with each other, so that one response alone teaches nothing."""

    @abstractmethod
    def __call__(self, episodes: Record) -> Record:
        """Return the episodes with `advantages` and `returns` filled, 0.0 where the mask is False."""


@dataclass(frozen=True, kw_only=True)
class GAE(AdvantageEstimator):
    """Generalised advantage estimation, for responses and for environments.

    Source: Schulman et al. 2016, arXiv 1506.02438.

    Args:
        gamma: discount per step, in [0, 1].
        gae_lambda: trace decay per step, in [0, 1].
        value_lambda: trace decay of the returns that the critic learns, in [0, 1]; null for `gae_lambda`. At 1 they are
            the rewards to come, without a bias from the critic itself (VC-PPO, arXiv 2503.01491; VAPO, arXiv
            2504.05118).
        bootstrap_truncated: whether a response cut by the length limit counts as unfinished. For environments,
            `terminated` tells.
        whiten: whether advantages get mean 0 and variance 1 over all steps of all ranks, before any callback filters.

    Raises:
        UserError: a number out of its range.
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_lambda: float | None = None
    bootstrap_truncated: bool = False
    whiten: bool = True

    needs_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            require_range(f"advantages.{name}", getattr(self, name), at_least=0, at_most=1)
        if self.value_lambda is not None:
            require_range("advantages.value_lambda", self.value_lambda, at_least=0, at_most=1)

    def __call__(self, episodes: Record) -> Record:
        """Return the episodes with `advantages` and `returns` (advantages + values before whitening)."""
        advantages, returns = self._estimated(episodes, self.gae_lambda)
        if self.value_lambda is not None:
            _, returns = self._estimated(episodes, self.value_lambda)
        # The returns are not whitened: the critic learns in units of the reward, which do not change with each batch.
        if self.whiten:
            # over all ranks: with the moments of one rank, the same episode would weigh differently on each
            moments = all_reduce_sum(torch.stack(masked_moments(values=advantages, mask=episodes.mask)))
            mean, variance = mean_and_variance(Moments(*moments))
            advantages = whiten(values=advantages, mask=episodes.mask, mean=mean, variance=variance)
        return episodes.evolve(advantages=advantages, returns=returns)

    def _estimated(self, episodes: Episodes, decay: float) -> tuple[Tensor, Tensor]:
        """Return advantages by one trace decay, and advantages + values, both of shape [rows, steps]."""
        # A fragment of an environment may contain several episodes and end in the middle of one, so its record states
        # where they end. A response is one episode.
        if not isinstance(episodes, ControlEpisodes):
            return response_gae(
                rewards=episodes.rewards,
                values=episodes.values,
                mask=episodes.mask,
                truncated=episodes.truncated,
                gamma=self.gamma,
                gae_lambda=decay,
                bootstrap_truncated=self.bootstrap_truncated,
            )
        advantages = gae(
            rewards=episodes.rewards,
            values=episodes.values,
            next_values=episodes.next_values,
            terminated=episodes.terminated,
            done=episodes.done,
            mask=episodes.mask,
            gamma=self.gamma,
            gae_lambda=decay,
        )
        return advantages, torch.where(episodes.mask, advantages + episodes.values, torch.zeros_like(advantages))


@dataclass(frozen=True, kw_only=True)
class GroupBaseline(AdvantageEstimator):
    """The reward of a response against those of the other responses to its prompt, the same for all its steps.

    A_i = (r_i - mean of its group) / (std + 1e-4), r_i the sum of the row's rewards, std unbiased.
    Source: Shao et al. 2024, GRPO, arXiv 2402.03300; `none` as in Dr. GRPO, Liu et al. 2025, arXiv 2503.20783.

    Args:
        scale: whose standard deviation is the divisor: that of the `group`, of the `batch` of all ranks, or `none`.

    Raises:
        UserError: another scale.
    """

    scale: Scale = "group"

    needs_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_choice("advantages.scale", self.scale, get_args(Scale))

    def __call__(self, episodes: Record) -> Record:
        """Return the episodes with `advantages`, and `returns` equal to the row's reward."""
        # Of the shaped rewards, so that the KL penalty takes part in the comparison within a group.
        totals = masked_row_sum(values=episodes.rewards, mask=episodes.mask)
        # All responses to a prompt are on one rank, so a group needs no other rank; the scale of a batch does.
        advantages = group_advantages(rewards=totals, group=episodes.group, scale=self.scale == "group")
        if self.scale == "batch":
            every = torch.ones_like(totals, dtype=torch.bool)
            moments = Moments(*all_reduce_sum(torch.stack(masked_moments(values=totals, mask=every))))
            _, variance = mean_and_variance(moments)
            # Unbiased, as the standard deviation of a group is; one episode alone has 0, not 0 / 0.
            unbiased = variance * moments.count / (moments.count - 1).clamp(min=1)
            advantages = advantages / (unbiased.sqrt().to(advantages) + 1e-4)
        return _with_row_advantages(episodes, advantages, totals)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(AdvantageEstimator):
    """The reward of a response minus the mean of the other responses to its prompt, the same for all its steps.

    A_i = r_i - mean of the others, r_i the sum of the row's rewards.
    Source: RLOO, Ahmadian et al. 2024, arXiv 2402.14740.
    """

    needs_groups: ClassVar[bool] = True

    def __call__(self, episodes: Record) -> Record:
        """Return the episodes with `advantages`, and `returns` equal to the row's reward."""
        # The KL penalty is in these rewards, summed over the response, as in the paper.
        totals = masked_row_sum(values=episodes.rewards, mask=episodes.mask)
        return _with_row_advantages(episodes, leave_one_out_advantages(rewards=totals, group=episodes.group), totals)


@dataclass(frozen=True, kw_only=True)
class GlobalBaseline(AdvantageEstimator):
    """What is still to come after each step, against all steps of all ranks: REINFORCE++.

    A_t = (G_t - mean) / std, G_t the sum of the rewards from step t on, KL penalty included; mean and standard
    deviation are over the steps of all ranks. Source: Hu et al. 2025, arXiv 2501.03262.
    """

    def __call__(self, episodes: Record) -> Record:
        """Return the episodes with `advantages`, and `returns` equal to the reward that is still to come."""
        # With a critic that always gives 0, no discount and a full trace, GAE is the sum of the rewards to come.
        zero = torch.zeros_like(episodes.rewards)
        without_critic = {"values": zero, **({"next_values": zero} if isinstance(episodes, ControlEpisodes) else {})}
        found = GAE(gamma=1.0, gae_lambda=1.0)(episodes.evolve(**without_critic))
        return episodes.evolve(advantages=found.advantages, returns=found.returns)


def _with_row_advantages(episodes: Record, advantages: Tensor, totals: Tensor) -> Record:
    """Return the episodes with one advantage and one return for all steps of a row, both of shape [rows]."""
    zero = torch.zeros_like(episodes.rewards)
    return episodes.evolve(
        advantages=torch.where(episodes.mask, advantages[:, None], zero),
        returns=torch.where(episodes.mask, totals[:, None], zero),
    )
