"""KL estimators against the exact divergence of two categoricals, and the controllers against the paper's rule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths import kl_estimate

# fp64, sums of a few terms
EXACT = {"rtol": 1e-12, "atol": 1e-12}
THIRD_ORDER = 5e-3  # the bias of k2 is of third order in the distance, which is 1e-3, the divergence of second

FLOATS = st.floats(-20, 0)


def two_categoricals(distance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of policy and reference over 6 outcomes."""
    policy = torch.randn(6, dtype=torch.float64)
    return policy.log_softmax(0), (policy + distance * torch.randn(6, dtype=torch.float64)).log_softmax(0)


def exact_kl(policy: Tensor, reference: Tensor) -> float:
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))


def expectation(policy: Tensor, reference: Tensor, estimator: str) -> float:
    """Of an estimator under the policy: every outcome once, with its probability."""
    return (policy.exp() * kl_estimate(log_probs=policy, ref_log_probs=reference, estimator=estimator)).sum().item()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_exact_divergence_as_their_mean(estimator: str) -> None:
    policy, reference = two_categoricals()
    assert expectation(policy, reference, estimator) == pytest.approx(exact_kl(policy, reference), rel=1e-12)
    # the divergence is not symmetric: the other direction is another number
    assert exact_kl(reference, policy) != pytest.approx(exact_kl(policy, reference), rel=1e-3)


def test_k2_has_half_the_mean_squared_log_ratio_and_comes_close_for_close_policies() -> None:
    policy, reference = two_categoricals()
    pairs = list(zip(policy.tolist(), reference.tolist(), strict=True))
    expected = math.fsum(math.exp(p) * (p - q) ** 2 / 2 for p, q in pairs)
    assert expectation(policy, reference, "k2") == pytest.approx(expected, rel=1e-12)
    near = two_categoricals(distance=1e-3)
    assert expectation(*near, "k2") == pytest.approx(exact_kl(*near), rel=THIRD_ORDER)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # log p - log q = ln 2: ln 2; (ln 2)^2 / 2; 1/2 - 1 + ln 2
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", math.log(2) - 0.5)],
)
def test_by_hand(estimator: str, expected: float) -> None:
    numbers = {"log_probs": torch.tensor([[math.log(0.5)]]), "ref_log_probs": torch.tensor([[math.log(0.25)]])}
    assert kl_estimate(**numbers, estimator=estimator).item() == pytest.approx(expected, rel=1e-6)


@given(log_prob=FLOATS, ref_log_prob=FLOATS)
def test_k2_and_k3_are_never_negative(log_prob: float, ref_log_prob: float) -> None:
    numbers = [torch.tensor([[number]], dtype=torch.float64) for number in (log_prob, ref_log_prob)]
    for estimator in ("k2", "k3"):
        # k3 is a difference of numbers up to 20, or of nearly equal ones: the last bit of either
        estimate = kl_estimate(log_probs=numbers[0], ref_log_probs=numbers[1], estimator=estimator)
        assert estimate.item() >= -4e-15


@pytest.mark.parametrize("shift", [-1e-3, 1e-3])
def test_single_precision_sees_a_small_divergence(shift: float) -> None:
    # x^2 / 2 = 5e-7, where exp(-x) - 1 would be off by 6e-8, the last bit of 1
    estimate = kl_estimate(log_probs=torch.tensor([[shift]]), ref_log_probs=torch.zeros(1, 1), estimator="k3")
    # the next term of the series is a third of the shift
    assert estimate.item() == pytest.approx(shift**2 / 2, rel=1e-3)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_same_policy_is_at_distance_zero(estimator: str) -> None:
    log_probs = -torch.rand(3, 4)
    assert kl_estimate(log_probs=log_probs, ref_log_probs=log_probs.clone(), estimator=estimator).eq(0).all()


@pytest.mark.parametrize(
    ("estimator", "slope"),
    # with x = log p - log q: dk1 = 1, dk2 = x, dk3 = 1 - exp(-x)
    [("k1", lambda x: 1.0), ("k2", lambda x: x), ("k3", lambda x: 1 - math.exp(-x))],
)
def test_gradients_by_the_log_prob(estimator: str, slope) -> None:
    log_probs = torch.tensor([[-0.5, -2.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.5, -1.0]], dtype=torch.float64)
    kl_estimate(log_probs=log_probs, ref_log_probs=reference, estimator=estimator).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[slope(1.0), slope(-1.0)]], dtype=torch.float64), **EXACT)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(UserError, match=r"estimator: 'k4' is unknown; expected k1, k2 or k3"):
        kl_estimate(log_probs=torch.zeros(1, 1), ref_log_probs=torch.zeros(1, 1), estimator="k4")
