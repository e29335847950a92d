"""A linear layer that makes values of features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ippo_lightning.errors import require_range
from ippo_lightning.policies.contexts import seeded


class ValueHead(nn.Module):
    """One number per token: V = w . features + b, computed in float32.

    Initial weights are normal with standard deviation 1 / sqrt(hidden_size + 1) and the bias is zero, as in the value
    head described in "The N Implementation Details of RLHF with PPO" (ICLR blog track 2024).

    Args:
        hidden_size: width of the features.
        init_std: standard deviation of the initial weights; None for the default above; 0.0 starts every value at 0.
        seed: start of the random numbers of the weights.

    Raises:
        UserError: `init_std` is negative.
    """

    def __init__(self, hidden_size: int, *, init_std: float | None = None, seed: int = 0) -> None:
        super().__init__()
        std = 1.0 / math.sqrt(hidden_size + 1) if init_std is None else init_std
        require_range("policy.value_init_std", std, at_least=0)
        self.init_std = std
        with seeded(seed):
            self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
            nn.init.normal_(self.linear.weight, std=std)
            # Without it, torch's random bias would shift all first values by the same amount.
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values [rows, steps] for features [rows, steps, hidden_size]."""
        # Autocast would round the values to bfloat16; returns of a few tenths would then move in visible steps.
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
        return values
