"""Ratios of steps and of responses, by hand and against the formulas as they are written."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ippo_lightning.maths import capped_ratio_terms, clipped_surrogate, sequence_log_ratio

# fp64, a handful of operations
EXACT = {"rtol": 1e-12, "atol": 1e-12}
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -7.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    # bounds 0.8 and 1.2, delta 3: only a negative advantage meets it, and is flat beyond
    [(5.0, 2.0, -2.4, 0.0), (2.0, -2.0, 4.0, 4.0), (5.0, -2.0, 6.0, 0.0), (0.5, -2.0, 1.6, 0.0)],
)
def test_the_second_bound_of_the_ratio_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    log_ratio = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    terms = clipped_surrogate(log_ratio=log_ratio, advantages=advantages, clip_low=0.2, clip_high=0.2, delta=3.0)
    assert terms.item() == pytest.approx(loss, rel=1e-12)
    assert torch.autograd.grad(terms.sum(), log_ratio)[0].item() == pytest.approx(slope, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("is_mean", [True, False])
@pytest.mark.parametrize("garbage", [0.0, *GARBAGE])
def test_the_ratio_of_a_response_reads_only_the_steps_that_count(is_mean: bool, garbage: float) -> None:
    # a hole in the first row; the third row has no step
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    log_ratio = torch.tensor([[0.3, 0.0, 0.1], [-0.2, 0.6, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = sequence_log_ratio(log_ratio=log_ratio.masked_fill(~mask, garbage), mask=mask, is_mean=is_mean)
    torch.testing.assert_close(found.flatten().tolist(), [0.2, 0.2, 0.0] if is_mean else [0.4, 0.4, 0.0], **EXACT)


@pytest.mark.parametrize("ratio", [0.2, 1.0, 1.9, 2.0, 2.5, 50.0])
@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_the_capped_ratio_has_the_gradient_of_the_weighted_log_prob(ratio: float, advantage: float) -> None:
    """CISPO as it is written: -stopgrad(min(r, cap)) A log pi, differentiated by autograd."""
    log_probs = torch.tensor([[math.log(ratio) - 3.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    log_ratio = log_probs + 3.0
    written = -log_ratio.exp().clamp(max=2.0).detach() * advantages * log_probs
    found = capped_ratio_terms(log_ratio=log_ratio, advantages=advantages, cap=2.0)
    slopes = [torch.autograd.grad(terms.sum(), log_probs)[0].item() for terms in (written, found)]
    assert slopes[0] == pytest.approx(-min(ratio, 2.0) * advantage, rel=1e-12)
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-12)


def test_a_difference_of_the_capped_loss_is_its_derivative_and_far_ratios_stay_finite() -> None:
    log_ratio = torch.tensor([[-2.0, 0.0, 0.6, 1.7, 300.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0]], dtype=torch.float64)

    def terms(at: Tensor) -> Tensor:
        return capped_ratio_terms(log_ratio=at, advantages=advantages, cap=2.0)

    slope = torch.autograd.grad(terms(log_ratio).sum(), log_ratio)[0]
    difference = (terms(log_ratio + 1e-6) - terms(log_ratio - 1e-6)) / 2e-6
    # curvature times the squared step, and rounding over the step
    torch.testing.assert_close(difference.detach(), slope, rtol=1e-8, atol=1e-8)
