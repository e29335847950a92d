"""Policy and value losses per step: what an algorithm minimises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ippo_lightning.errors import require_range
from ippo_lightning.maths import policy_loss_terms, value_loss_terms
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import Episodes


class PolicyLoss(ABC):
    """The loss of each step; the engine reduces it over steps, rows, micro-batches and ranks."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """What `terms` reads of the policy's output besides `log_probs`: `entropy`, or nothing."""

    @property
    def bounds(self) -> tuple[float, float]:
        """How far the ratio may fall below 1 and rise above 1 before it is clipped, for the log."""
        return math.inf, math.inf

    @abstractmethod
    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        """Return the loss of each step, shape [rows, steps], with its graph; only steps where the mask is True count.

        Args:
            output: of the policy under training.
            episodes: with `log_probs` of the policy that sampled, and `advantages`.
        """


@dataclass(frozen=True, kw_only=True)
class ClippedLoss(PolicyLoss):
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        low: the ratio is clipped at 1 - low, > 0.
        high: and at 1 + high, > 0; None for the same as `low`. DAPO (arXiv 2503.14476) uses 0.2 and 0.28.

    Raises:
        UserError: a number out of its range.
    """

    low: float = 0.2
    high: float | None = None

    def __post_init__(self) -> None:
        # float32, in which ratios and values are clipped, ends at 3e38.
        require_range("loss.low", self.low, above=0, at_most=1e30)
        if self.high is not None:
            require_range("loss.high", self.high, above=0, at_most=1e30)

    @property
    def bounds(self) -> tuple[float, float]:
        """`low`, and `high` or `low`."""
        return self.low, self.low if self.high is None else self.high

    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        """Return the negative clipped surrogate of each step."""
        low, high = self.bounds
        return policy_loss_terms(
            log_probs=output.log_probs,
            old_log_probs=episodes.log_probs,
            advantages=episodes.advantages,
            clip_low=low,
            clip_high=high,
        )


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
