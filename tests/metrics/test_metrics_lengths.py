"""Lengths of responses: sums and counts that add up, and no number without a response."""

from __future__ import annotations

import pytest
import torch

from ippo_lightning.metrics import LengthMetrics, ReasoningMetrics, RewardMetrics
from ippo_lightning.tasks import Grade

LENGTHS = torch.tensor([[3, 8], [8, 1], [5, 5]])
TRUNCATED = torch.tensor([[False, True], [True, False], [False, False]])


def test_batches_add_up_to_all_responses() -> None:
    metrics = LengthMetrics()
    metrics.update_lengths(None, None)
    assert metrics.compute_lengths() == {}
    metrics.update_lengths(LENGTHS[:1], TRUNCATED[:1])
    metrics.update_lengths(LENGTHS[1:], TRUNCATED[1:])
    assert metrics.compute_lengths() == pytest.approx({"response_tokens_mean": 5.0, "truncated_fraction": 1 / 3})
    metrics.reset_lengths()
    metrics.update_lengths(None, None)
    assert metrics.compute_lengths() == {}


def test_they_stand_beside_grades_and_rewards() -> None:
    graded, rewarded = ReasoningMetrics(), RewardMetrics()
    grades = [[Grade(True), Grade(False)]] * 3
    graded.update(grades, [None] * 3, lengths=LENGTHS, truncated=TRUNCATED)
    rewarded.update(torch.zeros(6), lengths=LENGTHS, truncated=TRUNCATED)
    for metrics in (graded, rewarded):
        assert metrics.compute()["response_tokens_mean"] == 5.0
        assert metrics.compute()["truncated_fraction"] == pytest.approx(1 / 3)
        metrics.reset()
    graded.update(grades, [None] * 3)
    assert "truncated_fraction" not in graded.compute()
