"""Controllers of the KL penalty's coefficient. They have a state, so they are not part of the maths."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ippo_lightning.errors import require_range


class FixedKLController:
    """A constant coefficient of the KL penalty.

    Args:
        coef: of the penalty, >= 0; 0 turns it off.

    Raises:
        UserError: a negative or infinite coefficient.
    """

    def __init__(self, coef: float = 0.05) -> None:
        require_range("kl_controller.coef", coef, at_least=0, below=math.inf)
        self.coef = coef
        self.initial_coef = coef

    def update(self, *, kl: float, num_episodes: int) -> None:
        """Change nothing.

        Args:
            kl: not used.
            num_episodes: not used.
        """

    def state_dict(self) -> dict[str, float]:
        """Return the coefficient, and the one at the start."""
        return {"coef": self.coef, "initial_coef": self.initial_coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue with the coefficient that `state_dict` returned, unless another one has been set since."""
        if state.get("initial_coef", self.initial_coef) == self.initial_coef:
            self.coef = float(state["coef"])


class AdaptiveKLController(FixedKLController):
    """A KL coefficient that steers the divergence towards a target.

    e = clip(kl / target - 1, -0.2, 0.2); coef <- coef * (1 + e * min(num_episodes / horizon, 1)).
    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, where num_episodes / horizon is K_beta = 0.1. Differs in
    that one update never changes the coefficient by more than a fifth: past five horizons it would turn negative.

    Args:
        coef: at the start, > 0.
        target: nats per episode, > 0.
        horizon: episodes over which the coefficient may change by a fifth, > 0.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(self, coef: float = 0.05, target: float = 6.0, horizon: float = 10_000.0) -> None:
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            require_range(f"kl_controller.{name}", value, above=0, below=math.inf)
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, *, kl: float, num_episodes: int) -> None:
        """Move the coefficient.

        Args:
            kl: mean divergence per episode, nats.
            num_episodes: episodes it was measured on, all ranks together.
        """
        # Clipped, so that one rollout far from the target does not move the coefficient at once.
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # Both numbers are of all ranks, so that each rank moves its coefficient alike.
        moved = self.coef * (1 + error * min(num_episodes / self.horizon, 1.0))
        # After thousands of moves in one direction it would be infinite, or 0 for ever.
        self.coef = min(max(moved, min(self.coef, _LOWEST)), max(self.coef, _HIGHEST))


_LOWEST, _HIGHEST = 1e-30, 1e30
