"""The numbers of a PPO update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ippo_lightning.engine.nonfinite import OnNonfinite
from ippo_lightning.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """What PPO (Schulman et al. 2017, arXiv 1707.06347) leaves to its user.

    Args:
        num_epochs: passes over the kept episodes of one iteration.
        minibatch_size: episodes behind one optimizer step, on each rank.
        micro_batch_size: episodes in one forward and backward; smaller saves memory and changes nothing else.
        clip_range: the policy ratio is clipped to [1 - clip_range, 1 + clip_range].
        value_clip_range: the critic moves at most this far from its old estimate; null for no clipping.
        value_coef: weight of the value loss.
        entropy_coef: weight of the entropy bonus.
        gamma: discount a token.
        gae_lambda: trace decay of generalised advantage estimation, a token.
        bootstrap_truncated: whether a response cut by the length limit counts as unfinished.
        whiten_advantages: whether advantages get mean 0 and variance 1 over all response tokens of all ranks, before
            any callback filters.
        max_grad_norm: gradients are scaled down to this norm; null for no clipping.
        loss_reduction: `episode_mean` gives every episode the same say (what an influence score describes),
            `token_mean` every token.
        denominator: what divides the policy loss after filtering: `kept` episodes, so that the step keeps its size,
            or `all`, so that it shrinks with the fraction that is left.
        steps_after_filtering: `fewer` optimizer steps where episodes were dropped, or the `same` number with smaller
            minibatches, to compare methods at equal optimizer steps.
        train_value_on_dropped: whether the critic (and the entropy bonus) still learns from episodes of weight zero.
        missing_eos_penalty: taken off the reward of a response that never stopped.
        on_nonfinite: what NaN or infinity in an episode's reward, log-prob, value, loss or gradient does: `stop` the
            run, or `skip` the episode; either way it is named.

    Raises:
        UserError: a number out of its range.
    """

    num_epochs: int = 4
    minibatch_size: int = 64
    micro_batch_size: int = 64
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    bootstrap_truncated: bool = False
    whiten_advantages: bool = True
    max_grad_norm: float | None = 1.0
    loss_reduction: Literal["episode_mean", "token_mean"] = "episode_mean"
    denominator: Literal["kept", "all"] = "kept"
    steps_after_filtering: Literal["fewer", "same"] = "fewer"
    train_value_on_dropped: bool = False
    missing_eos_penalty: float = 0.0
    on_nonfinite: OnNonfinite = "stop"

    def __post_init__(self) -> None:
        for name in ("num_epochs", "minibatch_size", "micro_batch_size"):
            _require(name, getattr(self, name), at_least=1)
        for name in ("value_coef", "entropy_coef", "missing_eos_penalty"):
            _require(name, getattr(self, name), at_least=0)
        for name in ("gamma", "gae_lambda"):
            _require(name, getattr(self, name), at_least=0, at_most=1)
        for name in ("clip_range", "value_clip_range", "max_grad_norm"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), above=0)


def _require(
    name: str, value: float, *, at_least: float = -math.inf, at_most: float = math.inf, above: float = -math.inf
) -> None:
    if math.isnan(value) or not (at_least <= value <= at_most) or (value <= above and above > -math.inf):
        bounds = f"> {above:g}" if above > -math.inf else f">= {at_least:g}"
        bounds += f" and <= {at_most:g}" if at_most < math.inf else ""
        raise UserError(f"ppo.{name}: {value} is out of range; expected a number {bounds}")
