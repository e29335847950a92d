"""Losses as objects: bounds of their own on each side, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.algorithms import CISPOLoss, ClippedLoss, ValueLoss
from ippo_lightning.errors import UserError
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import TextEpisodes


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
        (lambda: ClippedLoss(ratio="row"), r"loss\.ratio: 'row' is unknown; expected one of token, sequence_mean"),
        (lambda: ClippedLoss(high=0.3, delta=1.3), r"loss\.delta: 1\.3 is out of range; expected a number > 1\.3"),
        (lambda: ClippedLoss(beta=-1.0), r"loss\.beta: -1\.0"),
        (lambda: CISPOLoss(cap=0.0), r"loss\.cap: 0\.0"),
        (lambda: CISPOLoss(beta=math.inf), r"loss\.beta: inf"),
        (lambda: ValueLoss(coef=-0.1), r"value_loss\.coef: -0\.1"),
        (lambda: ValueLoss(clip_range=0), r"value_loss\.clip_range: 0"),
    ],
    ids=["low", "high", "ratio", "delta", "beta", "cap", "beta of cispo", "coef", "clip_range"],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def rows_of_two() -> TextEpisodes:
    """Two rows of three and two steps with log-ratios 0.3, -0.1, 0.4 and -0.2, 0.1."""
    episodes = make_episodes([1, 1], [3, 2])
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)
    references = torch.tensor([[0.3, -0.6, 0.4], [-0.2, 0.1, 0.0]], dtype=torch.float64)
    return episodes.evolve(log_probs=zeros, advantages=advantages, ref_log_probs=references)


MOVED = PolicyOutput(
    log_probs=torch.tensor([[0.3, -0.1, 0.4], [-0.2, 0.1, 0.0]], dtype=torch.float64), entropy=None, values=None
)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # sums 0.6 and -0.1: exp(0.6) = 1.82 is clipped at 1.2, exp(-0.1) = 0.905 is not
        (ClippedLoss(ratio="sequence_sum"), [-2.4, math.exp(-0.1)]),
        # means 0.2 and -0.05: exp(0.2) = 1.22 is clipped at 1.0004, exp(-0.05) = 0.951 at 0.9997
        (ClippedLoss(ratio="sequence_mean", low=3e-4, high=4e-4), [-2.0008, 0.9997]),
    ],
    ids=["sum", "mean"],
)
def test_a_response_may_have_one_ratio_for_all_its_tokens(loss: ClippedLoss, expected: list[float]) -> None:
    episodes = rows_of_two()
    terms = loss.terms(MOVED, episodes)
    for row, value in enumerate(expected):
        assert terms[row][episodes.mask[row]].tolist() == pytest.approx([value] * int(episodes.lengths[row]), rel=1e-12)
    assert loss.log_ratio(MOVED.log_probs, episodes).shape == (2, 1)


def test_beta_adds_k3_of_each_token() -> None:
    episodes = rows_of_two()
    difference = ClippedLoss(beta=0.5).terms(MOVED, episodes) - ClippedLoss().terms(MOVED, episodes)
    # the reference differs in one token: log-prob -0.1 against -0.6
    expected = torch.zeros_like(difference)
    expected[0, 1] = 0.5 * (math.exp(-0.5) + 0.5 - 1)
    torch.testing.assert_close(difference, expected, rtol=1e-9, atol=1e-12)
    capped = CISPOLoss(beta=0.5).terms(MOVED, episodes) - CISPOLoss().terms(MOVED, episodes)
    torch.testing.assert_close(capped, expected, rtol=1e-9, atol=1e-12)


def test_a_reference_that_no_term_reads_may_be_anything() -> None:
    episodes = rows_of_two().evolve(ref_log_probs=torch.full((2, 3), math.nan, dtype=torch.float64))
    for loss in (ClippedLoss(), CISPOLoss()):
        assert loss.terms(MOVED, episodes).isfinite().all()
        assert not loss.needs_reference


def test_a_token_that_has_gone_far_still_counts_with_the_weight_of_the_cap() -> None:
    log_probs = MOVED.log_probs.clone().requires_grad_()
    output = PolicyOutput(log_probs=log_probs, entropy=None, values=None)
    episodes = rows_of_two()
    slopes = torch.autograd.grad(CISPOLoss(cap=1.4).terms(output, episodes)[episodes.mask].sum(), log_probs)[0]
    ratios = [[math.exp(0.3), math.exp(-0.1), 1.4], [math.exp(-0.2), math.exp(0.1), 0.0]]
    expected = -torch.tensor(ratios, dtype=torch.float64) * episodes.advantages
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-12)
    assert CISPOLoss(cap=1.4).bounds == (math.inf, pytest.approx(0.4))
