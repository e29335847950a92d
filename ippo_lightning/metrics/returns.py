"""Metrics of episodes in environments: return and length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ippo_lightning.metrics.functional import fraction


class MeanOfEpisodes(Metric):
    """Mean of one number per episode; NaN without any.

    Example:
        >>> metric = MeanOfEpisodes()
        >>> metric.update([1.0, 0.0])
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    total: Tensor
    num_episodes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_episodes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, numbers: Sequence[float]) -> None:
        """Add one number per episode."""
        # Python adds in double precision; the state has to be single, because some devices have no other
        self.total += float(sum(numbers))
        self.num_episodes += len(numbers)

    def compute(self) -> Tensor:
        """Return the mean, shape []."""
        return fraction(self.total, self.num_episodes)


class ReturnMetrics(nn.Module):
    """What an evaluation in environments gives: `episode_return` and `episode_length`, means over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.returns, self.lengths = MeanOfEpisodes(), MeanOfEpisodes()

    def update(self, episodes: Sequence[tuple[float, int]]) -> None:
        """Add episodes.

        Args:
            episodes: return, in units of the environment's reward, and length of each.
        """
        self.returns.update([value for value, _ in episodes])
        self.lengths.update([length for _, length in episodes])

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN without episodes."""
        return {"episode_return": float(self.returns.compute()), "episode_length": float(self.lengths.compute())}

    def reset(self) -> None:
        """Set all sums and counts to 0."""
        self.returns.reset()
        self.lengths.reset()
