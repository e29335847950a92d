"""Estimates of the divergence from the reference, and what sets the penalty's coefficient."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    raise UserError(f"kl_estimator: '{estimator}' is unknown; expected k1, k2 or k3")


class FixedKLController:
    """A KL coefficient that stays as it is.

    Args:
        coef: of the penalty, >= 0; 0 turns it off.

    Raises:
        UserError: a negative or infinite coefficient.
    """

    def __init__(self, coef: float = 0.05) -> None:
        if not 0 <= coef < math.inf:
            raise UserError(f"kl_controller.coef: {coef} is out of range; expected a number >= 0")
        self.coef = coef

    def update(self, *, kl: float, num_episodes: int) -> None:
        """Change nothing.

        Args:
            kl: not looked at.
            num_episodes: not looked at.
        """

    def state_dict(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over the coefficient."""
        self.coef = float(state["coef"])


class AdaptiveKLController(FixedKLController):
    """A KL coefficient that steers the divergence towards a target.

    e = clip(kl / target - 1, -0.2, 0.2); coef <- coef * (1 + e * min(num_episodes / horizon, 1)).
    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, where num_episodes / horizon is K_beta = 0.1. Differs in
    that one update never changes the coefficient by more than a fifth: past five horizons it would turn negative.

    Args:
        coef: at the start, > 0.
        target: nats an episode, > 0.
        horizon: episodes over which the coefficient may change by a fifth, > 0.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(self, coef: float = 0.05, target: float = 6.0, horizon: float = 10_000.0) -> None:
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            if not 0 < value < math.inf:
                raise UserError(f"kl_controller.{name}: {value} is out of range; expected a number > 0")
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, *, kl: float, num_episodes: int) -> None:
        """Move the coefficient.

        Args:
            kl: mean divergence an episode, nats.
            num_episodes: episodes it was measured on, all ranks together.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(num_episodes / self.horizon, 1.0)
