"""Estimates of the divergence from the reference."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ippo_lightning.errors import UserError

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(*, log_probs: Tensor, ref_log_probs: Tensor, estimator: KLEstimator) -> Tensor:
    """Return an estimate of KL(policy || reference) for each token sampled from the policy.

    With x = log p - log q: k1 = x (unbiased, any sign), k2 = x^2 / 2 (biased, >= 0), k3 = exp(-x) - 1 + x (unbiased,
    >= 0). Source: Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html.

    Args:
        log_probs: of the policy, nats, shape [rows, steps].
        ref_log_probs: of the reference, nats, shape [rows, steps].
        estimator: `k1`, `k2` or `k3`.

    Returns:
        Nats, shape [rows, steps].

    Raises:
        UserError: another estimator.
    """
    log_ratio = log_probs - ref_log_probs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        # expm1: near equality exp(-x) - 1 would be the rounding of 1, and the estimate of either sign
        return (-log_ratio).expm1() + log_ratio
    raise UserError(f"estimator: '{estimator}' is unknown; expected k1, k2 or k3")
