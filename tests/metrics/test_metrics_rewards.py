"""The mean reward of an evaluation, over batches and with numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from ippo_lightning.metrics import MeanReward, RewardMetrics


def test_the_mean_is_over_all_responses_and_not_over_batches() -> None:
    metrics = RewardMetrics()
    for batch in ([1.0], [2.0, 3.0, 6.0]):
        metrics.update(torch.tensor(batch))
    assert metrics.compute() == {"reward": pytest.approx(3.0)}
    metrics.reset()
    assert math.isnan(metrics.compute()["reward"])


def test_rewards_that_are_not_finite_do_not_count() -> None:
    metric = MeanReward()
    metric.update(torch.tensor([1.0, torch.nan, torch.inf, 3.0]))
    assert float(metric.compute()) == 2.0


def test_ranks_of_different_sizes_add_up() -> None:
    """The states are sums, so those of two ranks add up to that of one rank with all responses."""
    parts = [torch.tensor([1.0, 5.0]), torch.tensor([0.25])]
    alone, ranks = MeanReward(), [MeanReward(), MeanReward()]
    alone.update(torch.cat(parts))
    for metric, part in zip(ranks, parts, strict=True):
        metric.update(part)
    total, count = sum(float(metric.total) for metric in ranks), sum(int(metric.num_responses) for metric in ranks)
    assert total / count == pytest.approx(float(alone.compute()), rel=1e-6)  # the quotient is rounded to float32
