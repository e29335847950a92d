"""Losses as objects: bounds of their own on each side, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.algorithms import ClippedLoss, ValueLoss
from ippo_lightning.errors import UserError
from ippo_lightning.policies import PolicyOutput


def output(log_ratio: float) -> PolicyOutput:
    return PolicyOutput(log_probs=torch.full((1, 1), log_ratio), entropy=None, values=None)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    # clipped above at 1.28 and below at 0.8, and only where the clipped term is the smaller one
    [(2.0, 1.0, -1.28), (1.2, 1.0, -1.2), (0.5, -1.0, 0.8), (0.5, 1.0, -0.5), (2.0, -1.0, 2.0)],
)
def test_each_side_is_clipped_at_its_own_bound(ratio: float, advantage: float, expected: float) -> None:
    episodes = make_episodes([1], [1]).evolve(log_probs=torch.zeros(1, 1), advantages=torch.full((1, 1), advantage))
    terms = ClippedLoss(low=0.2, high=0.28).terms(output(math.log(ratio)), episodes)
    assert float(terms) == pytest.approx(expected, rel=1e-6)


def test_one_bound_serves_both_sides_by_default() -> None:
    assert ClippedLoss(low=0.3).bounds == (0.3, 0.3)


def test_the_critic_is_compared_with_the_returns() -> None:
    episodes = make_episodes([1], [1]).evolve(values=torch.zeros(1, 1), returns=torch.full((1, 1), 2.0))
    values = torch.ones(1, 1)
    assert float(ValueLoss(clip_range=None).terms(values, episodes)) == 0.5
    # moved by at most 0.5, the old estimate 0 is 1.5 away from the return
    assert float(ValueLoss(clip_range=0.5).terms(values, episodes)) == 0.5 * 1.5**2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedLoss(low=0.0), r"loss\.low: 0\.0"),
        (lambda: ClippedLoss(high=-1.0), r"loss\.high: -1\.0"),
        (lambda: ValueLoss(coef=-0.1), r"value_loss\.coef: -0\.1"),
        (lambda: ValueLoss(clip_range=0), r"value_loss\.clip_range: 0"),
    ],
    ids=["low", "high", "coef", "clip_range"],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
