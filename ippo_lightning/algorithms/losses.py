"""Policy and value losses per step: what an algorithm minimises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import (
    capped_ratio_terms,
    clipped_surrogate,
    kl_estimate,
    sequence_log_ratio,
    value_loss_terms,
)
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import Episodes

Ratio = Literal["token", "sequence_mean", "sequence_sum"]


class PolicyLoss(ABC):
    """The loss of each step; the engine reduces it over steps, rows, micro-batches and ranks."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """What `terms` reads of the policy's output besides `log_probs`: `entropy`, or nothing."""

    @property
    def bounds(self) -> tuple[float, float]:
        """How far the ratio may fall below 1 and rise above 1 before it is clipped, for the log."""
        return math.inf, math.inf

    @property
    def needs_reference(self) -> bool:
        """Whether `terms` reads the log-probs of the reference."""
        return False

    def log_ratio(self, log_probs: Tensor, episodes: Episodes) -> Tensor:
        """Return the log of the ratio that `terms` weighs and clips, nats, shape [rows, steps], or [rows, 1].

        Args:
            log_probs: of the policy under training, shape [rows, steps].
            episodes: with `log_probs` of the policy that sampled.
        """
        return log_probs - episodes.log_probs

    def unclipped(self) -> PolicyLoss:
        """Return a loss with the same derivative where all ratios are 1, and no kink near there."""
        return self

    @abstractmethod
    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        """Return the loss of each step, shape [rows, steps], with its graph; only steps where the mask is True count.

        Args:
            output: of the policy under training.
            episodes: with `log_probs` of the policy that sampled, and `advantages`.
        """


@dataclass(frozen=True, kw_only=True)
class ClippedLoss(PolicyLoss):
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), for tokens or for complete responses.

    Args:
        low: the ratio is clipped at 1 - low, > 0.
        high: and at 1 + high, > 0; None for the same as `low`. DAPO (arXiv 2503.14476) uses 0.2 and 0.28.
        ratio: of each `token`; or one for all tokens of a response: `sequence_mean` is the exponential of the mean
            log-ratio (GSPO, arXiv 2507.18071), `sequence_sum` the ratio of the probabilities of the response (RLOO).
        delta: the largest ratio of a token with a negative advantage, > 1 + high; None for no such bound.
        beta: weight of the divergence from the reference (k3) in the loss of each token, >= 0. The coefficient of
            `kl_controller` is another penalty, in the reward.
        ratio_in_divergence: multiply that divergence by the ratio, so that the gradient of its mean is unbiased
            (DeepSeek-V3.2, arXiv 2512.02556). TRL does so by default.

    Raises:
        UserError: a number out of its range, or an unknown ratio.
    """

    low: float = 0.2
    high: float | None = None
    ratio: Ratio = "token"
    delta: float | None = None
    beta: float = 0.0
    ratio_in_divergence: bool = False

    def __post_init__(self) -> None:
        # float32, in which ratios and values are clipped, ends at 3e38.
        require_range("loss.low", self.low, above=0, at_most=1e30)
        if self.high is not None:
            require_range("loss.high", self.high, above=0, at_most=1e30)
        require_choice("loss.ratio", self.ratio, get_args(Ratio))
        if self.delta is not None:
            require_range("loss.delta", self.delta, above=1, at_most=1e30)
            # Below the upper bound it would clip what the surrogate itself leaves alone.
            if self.delta <= 1 + self.bounds[1]:
                raise UserError(
                    f"loss.delta: {self.delta} is out of range; expected a number > {1 + self.bounds[1]}, 1 + loss.high"
                )
        require_range("loss.beta", self.beta, at_least=0, below=math.inf)

    @property
    def bounds(self) -> tuple[float, float]:
        """`low`, and `high` or `low`."""
        return self.low, self.low if self.high is None else self.high

    @property
    def needs_reference(self) -> bool:
        """Whether `beta` is above 0."""
        return self.beta > 0

    def log_ratio(self, log_probs: Tensor, episodes: Episodes) -> Tensor:
        """Return the log-ratio of each token, [rows, steps], or that of each response, [rows, 1]."""
        of_tokens = log_probs - episodes.log_probs
        if self.ratio == "token":
            return of_tokens
        return sequence_log_ratio(log_ratio=of_tokens, mask=episodes.mask, is_mean=self.ratio == "sequence_mean")

    def unclipped(self) -> ClippedLoss:
        """Return the loss with bounds that no ratio reaches."""
        return replace(self, low=1e30, high=1e30, delta=None)

    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        """Return the negative clipped surrogate of each step, plus `beta` times its divergence."""
        low, high = self.bounds
        log_ratio = self.log_ratio(output.log_probs, episodes)
        terms = clipped_surrogate(
            log_ratio=log_ratio,
            advantages=episodes.advantages,
            clip_low=low,
            clip_high=high,
            delta=math.inf if self.delta is None else self.delta,
        )
        weight = log_ratio if self.ratio_in_divergence else None
        return _with_divergence(terms, output, episodes, beta=self.beta, log_weight=weight)


@dataclass(frozen=True, kw_only=True)
class CISPOLoss(PolicyLoss):
    """The policy gradient of each token, weighted by its ratio up to a cap (MiniMax 2025, arXiv 2506.13585).

    No token is clipped away: one that has gone too far still counts, with the weight `cap`.

    Args:
        cap: the largest ratio that counts, > 0.
        beta: see `ClippedLoss`.
        ratio_in_divergence: see `ClippedLoss`.

    Raises:
        UserError: a number out of its range.
    """

    cap: float = 5.0
    beta: float = 0.0
    ratio_in_divergence: bool = False

    def __post_init__(self) -> None:
        require_range("loss.cap", self.cap, above=0, at_most=1e30)
        require_range("loss.beta", self.beta, at_least=0, below=math.inf)

    @property
    def bounds(self) -> tuple[float, float]:
        """No lower bound, and `cap`."""
        return math.inf, self.cap - 1

    @property
    def needs_reference(self) -> bool:
        """Whether `beta` is above 0."""
        return self.beta > 0

    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        """Return the loss of each step, plus `beta` times its divergence."""
        log_ratio = self.log_ratio(output.log_probs, episodes)
        terms = capped_ratio_terms(log_ratio=log_ratio, advantages=episodes.advantages, cap=self.cap)
        weight = log_ratio if self.ratio_in_divergence else None
        return _with_divergence(terms, output, episodes, beta=self.beta, log_weight=weight)


def _with_divergence(
    terms: Tensor, output: PolicyOutput, episodes: Episodes, *, beta: float, log_weight: Tensor | None
) -> Tensor:
    """Return the terms plus beta times k3, whose gradient pulls the policy towards the reference."""
    # Not even multiplied by 0: a reference that is not finite somewhere would make the loss NaN.
    if beta == 0:
        return terms
    kl = kl_estimate(log_probs=output.log_probs, ref_log_probs=episodes.ref_log_probs, estimator="k3")
    return terms + beta * (kl if log_weight is None else log_weight.exp() * kl)


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Half the squared error of the critic, the larger of the clipped and the unclipped.

    Args:
        coef: weight beside the policy loss, >= 0.
        clip_range: the critic moves at most this far from its old estimate, > 0; None for no clipping.

    Raises:
        UserError: a number out of its range.
    """

    coef: float = 0.1
    clip_range: float | None = 0.2

    def __post_init__(self) -> None:
        require_range("value_loss.coef", self.coef, at_least=0, below=math.inf)
        if self.clip_range is not None:
            require_range("value_loss.clip_range", self.clip_range, above=0, at_most=1e30)

    def terms(self, values: Tensor, episodes: Episodes) -> Tensor:
        """Return the loss of each step, shape [rows, steps], for the critic's `values` of the same shape."""
        return value_loss_terms(
            values=values,
            old_values=episodes.values,
            returns=episodes.returns,
            clip_range=math.inf if self.clip_range is None else self.clip_range,
        )
