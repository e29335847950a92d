"""Metrics of sampled responses to prompts without right answers: their reward."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.metrics.functional import fraction
from ippo_lightning.metrics.lengths import LengthMetrics


class MeanReward(Metric):
    """Mean of the rewards that are finite; NaN without any.

    Example:
        >>> metric = MeanReward()
        >>> metric.update(torch.tensor([1.0, float("nan"), 0.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    total: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rewards: Tensor) -> None:
        """Add responses.

        Args:
            rewards: shape [rows].
        """
        finite = rewards[rewards.isfinite()]
        # Python adds in double precision; the state has to be single, because some devices have no other
        self.total += float(finite.double().sum())
        self.num_responses += finite.numel()

    def compute(self) -> Tensor:
        """Return the mean, in units of the reward, shape []."""
        return fraction(self.total, self.num_responses)


class RewardMetrics(LengthMetrics):
    """What an evaluation without a grader gives: `reward`, the mean over the responses of all ranks, and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = MeanReward()

    def update(self, rewards: Tensor, *, lengths: Tensor | None = None, truncated: Tensor | None = None) -> None:
        """Add responses.

        Args:
            rewards: shape [rows].
            lengths: tokens of each response, int64; None if unknown.
            truncated: whether the length limit cut each response off, bool; None if unknown.
        """
        self.reward.update(rewards)
        self.update_lengths(lengths, truncated)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN without responses."""
        return {"reward": float(self.reward.compute()), **self.compute_lengths()}

    def reset(self) -> None:
        """Set all sums and counts to 0."""
        self.reward.reset()
        self.reset_lengths()
