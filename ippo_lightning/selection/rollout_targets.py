"""Targets that are made from the rollout itself, and need no demonstrations.

A row is then in its own target, and a part of its score is its agreement with itself. Each of these targets can leave
that part out exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.influence import return_target, sequence_target
from ippo_lightning.maths import Moments, masked_moments, masked_row_sum, mean_and_variance
from ippo_lightning.records import ControlEpisodes, Episodes, UpdatePlan, cut_rows
from ippo_lightning.records.pass_size import MaxTokens, PassSize, require_max_tokens
from ippo_lightning.selection.fresh_rollouts import fresh_rollout
from ippo_lightning.selection.module_interface import EpisodeLosses
from ippo_lightning.selection.targets import OwnTerms, Target, TargetLoss

_EPSILON = 1e-8
"""Added to the variance of rewards: equal rewards give zeros."""


@dataclass(frozen=True, kw_only=True)
class ReturnOfBuffer(Target):
    """The policy gradient of the buffer itself, which needs no demonstrations; for modules with `score(episodes)`.

    loss = - mean over the actions of all ranks of A * log pi(a|s), over the rows that the plan still keeps.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), section 3, with the opposite sign.

    Args:
        leave_out_self: score each row against the target of the other rows.
        max_tokens: tokens of a pass, padding included, >= 1; `auto` is 16384. A pass that does not fit in the device's
            memory is halved.
        importance: multiply each action's term by its probability now over that in the rollout, without a gradient of
            its own: for scores within an update, whose parameters are not those of the rollout.

    Raises:
        UserError: a number out of its range.
    """

    leave_out_self: bool = False
    max_tokens: MaxTokens = "auto"
    importance: bool = False

    def __post_init__(self) -> None:
        require_max_tokens("target.max_tokens", self.max_tokens)

    @property
    def leaves_out_self(self) -> bool:
        """See `leave_out_self`."""
        return self.leave_out_self

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return minus the mean of A * log pi, and the kept rows of this rank in batches.

        Raises:
            UserError: the module has no method `score`, or the buffer is no record of episodes.
        """
        require_episodes(self, module, plan.episodes)
        of_rows = partial(_minus_return_of_rows, importance=self.importance)
        own = OwnTerms(plan.episodes.lengths * _in_target(plan).double(), of_rows)
        return TargetLoss(
            partial(_minus_return, importance=self.importance),
            _kept_batches(plan, self.max_tokens),
            weight=_num_actions,
            # each rank has sampled other rows, while demonstrations are the same on all ranks
            is_of_rank=True,
            costs=episode_costs,
            max_tokens=self.max_tokens,
            own=own if self.leave_out_self else None,
        )


@dataclass(frozen=True, kw_only=True)
class AverageReward(Target):
    """The average reward of responses, which needs no demonstrations and no critic; for modules with `score(episodes)`.

    loss = - mean over the responses of all ranks of z * log pi(y|x); z is the raw reward, shifted and scaled to mean 0
    and variance 1 over the same responses, and log pi(y|x) the sum over the tokens of a response.
    Source: arXiv 2605.07063, its replication of IIF for language models, with the opposite sign.

    Args:
        prompts: `rollout` for the responses that the plan still keeps; `validation` for fresh responses to prompts of
            the data module's `val_dataloader()`, which cost one more rollout of that size.
        num_prompts: number of prompts of `validation`, the first ones, over all ranks; null for all.
        leave_out_self: score each row against the target of the other rows, with z as it is; for `rollout` only.
        max_tokens: see `ReturnOfBuffer`.

    Raises:
        UserError: a number out of its range, an unknown word, or `leave_out_self` for other responses than those that
            are scored.
    """

    prompts: Literal["rollout", "validation"] = "rollout"
    num_prompts: int | None = 64
    leave_out_self: bool = False
    max_tokens: MaxTokens = "auto"

    def __post_init__(self) -> None:
        require_choice("target.prompts", self.prompts, ("rollout", "validation"))
        require_num_prompts(self.num_prompts)
        require_max_tokens("target.max_tokens", self.max_tokens)
        if self.leave_out_self and self.prompts == "validation":
            raise UserError(
                "target.leave_out_self: true, and the target is made from other responses than those that are scored; "
                "set it to false, or prompts to rollout"
            )

    @property
    def leaves_out_self(self) -> bool:
        """See `leave_out_self`."""
        return self.leave_out_self

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return minus the mean of z * log pi, and the responses of this rank in batches.

        Raises:
            UserError: the module has no method `score`, the rows are single transitions, or there are no prompts.
        """
        require_episodes(self, module, plan.episodes)
        if isinstance(plan.episodes, ControlEpisodes) and plan.episodes.mask.shape[1] == 1:
            raise UserError(
                "InfluenceFilter.target: AverageReward needs the reward of an episode, and the rows are transitions; "
                "use ReturnOfBuffer"
            )
        if self.prompts == "validation":
            episodes = fresh_rollout(self, module, trainer, num_prompts=self.num_prompts, with_advantages=False)
            plan = UpdatePlan(episodes=episodes)
        is_in = _in_target(plan)
        # Of all ranks, so that each response has the same z as in one process.
        moments = masked_moments(values=plan.episodes.outcome_rewards, mask=is_in)
        mean, variance = mean_and_variance(Moments(*all_reduce_sum(torch.stack(list(moments)))))
        z = partial(_normalised, mean=mean, scale=torch.rsqrt(variance + _EPSILON))
        own = OwnTerms(is_in.double(), partial(_minus_rewards_of_rows, z=z))
        return TargetLoss(
            partial(_minus_rewards, z=z),
            _kept_batches(plan, self.max_tokens),
            is_of_rank=True,
            costs=episode_costs,
            max_tokens=self.max_tokens,
            own=own if self.leave_out_self else None,
            num_sampled=len(plan.episodes) if self.prompts == "validation" else None,
        )


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutMean(Target):
    """The mean gradient of the other rows: a positive score means that a row pulls where the others pull.

    score_i = <g_i, mean of g_j over the other rows of all ranks>, over the rows that the plan still keeps. Needs no
    demonstrations and no rewards; works with foreign buffers, too.
    Source: the leave-one-out mean of DTV (2026).

    Args:
        episode_losses: `(module, episodes) -> [rows]`, the losses behind the gradients; None for those that the filter
            scores.
        max_tokens: see `ReturnOfBuffer`.

    Raises:
        UserError: a number out of its range.
    """

    episode_losses: EpisodeLosses | None = None
    max_tokens: MaxTokens = "auto"

    def __post_init__(self) -> None:
        require_max_tokens("target.max_tokens", self.max_tokens)

    @property
    def leaves_out_self(self) -> bool:
        """Always."""
        return True

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return the mean of the rows' losses, and the kept rows of this rank in batches."""
        losses = self.episode_losses or _own_episode_losses
        return TargetLoss(
            partial(_mean_of, losses=losses),
            _kept_batches(plan, self.max_tokens),
            is_of_rank=True,
            costs=episode_costs if isinstance(plan.episodes, Episodes) else None,
            max_tokens=self.max_tokens,
            own=OwnTerms(_in_target(plan).double()),
        )


def with_episode_losses(target: Target, episode_losses: EpisodeLosses | None) -> Target:
    """Return a target that reads the losses that the filter scores, if it reads such losses.

    Args:
        target: of the filter.
        episode_losses: of the filter.
    """
    if isinstance(target, LeaveOneOutMean) and target.episode_losses is None and episode_losses is not None:
        return replace(target, episode_losses=episode_losses)
    return target


def require_num_prompts(num_prompts: int | None) -> None:
    """Check a number of prompts.

    Raises:
        UserError: it is below 1.
    """
    if num_prompts is not None:
        require_range("target.num_prompts", num_prompts, at_least=1, integer=True)


def require_episodes(target: Target, module: Any, episodes: Any) -> None:
    """Check that the log-probabilities of a rollout can be computed.

    Args:
        target: for the message.
        module: under training.
        episodes: the rollout.

    Raises:
        UserError: the module has no method `score`, or the buffer is no record of episodes.
    """
    if not callable(getattr(module, "score", None)) or not isinstance(episodes, Episodes):
        raise UserError(
            f"InfluenceFilter.target: {type(target).__name__} needs the method score(episodes) of "
            f"{type(module).__name__}, and Episodes, not a {type(episodes).__name__}"
        )


def batches_of(episodes: Any, rows: Tensor, max_tokens: MaxTokens) -> list[Any]:
    """Return rows in batches of neighbours in cost.

    Args:
        episodes: a rollout, or the view of a foreign buffer.
        rows: positions, shape [chosen], int64.
        max_tokens: of a batch.
    """
    limit = PassSize(max_tokens, field="target.max_tokens").tokens
    return [episodes.select(rows[part]) for part in cut_rows(episodes.cost()[rows], max_tokens=limit)]


def episode_costs(_module: Any, episodes: Episodes) -> Tensor:
    """Return the tokens of each row; the `costs` of a `TargetLoss` whose batches are episodes."""
    return episodes.cost()


def minus_sequence_return(module: Any, episodes: Episodes, *, factors: Callable[[Episodes], Tensor]) -> Tensor:
    """Return minus the mean over responses of a factor times the log-probability of the response.

    Args:
        module: with the method `score`.
        episodes: responses.
        factors: returns one number per response, shape [rows].
    """
    log_probs = module.score(episodes).log_probs
    return sequence_target(log_probs=log_probs, last_advantages=factors(episodes).to(log_probs), mask=episodes.mask)


def _in_target(plan: UpdatePlan) -> Tensor:
    """Return which rows make the target, shape [rows], bool."""
    # a row without a step that counts has no action, and a batch of such rows has no mean
    has_steps = plan.episodes.lengths > 0 if isinstance(plan.episodes, Episodes) else torch.ones_like(plan.keep)
    return plan.keep & has_steps


def _kept_batches(plan: UpdatePlan, max_tokens: MaxTokens) -> list[Any]:
    return batches_of(plan.episodes, _in_target(plan).nonzero().flatten(), max_tokens)


def _minus_return(module: Any, episodes: Episodes, *, importance: bool) -> Tensor:
    # through the module's own forward, so that temperature and adapters are those of training
    log_probs = module.score(episodes).log_probs
    factors = _factors(log_probs, episodes, importance=importance)
    return return_target(log_probs=log_probs, advantages=factors, mask=episodes.mask)


def _minus_return_of_rows(module: Any, episodes: Episodes, *, importance: bool) -> Tensor:
    log_probs = module.score(episodes).log_probs
    factors = _factors(log_probs, episodes, importance=importance)
    return -masked_row_sum(values=log_probs * factors, mask=episodes.mask)


def _factors(log_probs: Tensor, episodes: Episodes, *, importance: bool) -> Tensor:
    """Return what multiplies the log-probability of each action, shape [rows, steps], without a graph."""
    if not importance:
        return episodes.advantages
    return episodes.advantages * (log_probs.detach() - episodes.log_probs).exp()


def _normalised(episodes: Episodes, *, mean: Tensor, scale: Tensor) -> Tensor:
    return (episodes.outcome_rewards - mean) * scale


def _minus_rewards(module: Any, episodes: Episodes, *, z: Callable[[Episodes], Tensor]) -> Tensor:
    return minus_sequence_return(module, episodes, factors=z)


def _minus_rewards_of_rows(module: Any, episodes: Episodes, *, z: Callable[[Episodes], Tensor]) -> Tensor:
    log_probs = module.score(episodes).log_probs
    return -masked_row_sum(values=log_probs, mask=episodes.mask) * z(episodes).to(log_probs)


def _own_episode_losses(module: Any, episodes: Any) -> Tensor:
    losses: Tensor = module.episode_losses(episodes)
    return losses


def _mean_of(module: Any, episodes: Any, *, losses: EpisodeLosses) -> Tensor:
    return losses(module, episodes).mean()


def _num_actions(episodes: Episodes) -> float:
    # weighted so, the mean over batches is the mean over all actions
    return float(episodes.num_steps)
