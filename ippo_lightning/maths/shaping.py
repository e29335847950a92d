"""From one number per row to one reward per step."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo_lightning.maths.advantages import last_steps


def shape_rewards(
    *,
    outcome_rewards: Tensor,
    kl: Tensor,
    kl_coef: float,
    mask: Tensor,
    truncated: Tensor,
    missing_eos_penalty: float,
) -> Tensor:
    """Put the outcome on the last step that counts, and subtract the KL penalty from every step.

    r_t = -kl_coef * kl_t + [t is last] * (outcome - missing_eos_penalty * truncated)
    Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2, per token instead of summed over tokens.

    Args:
        outcome_rewards: shape [rows].
        kl: nats per step, shape [rows, steps].
        kl_coef: >= 0.
        mask: shape [rows, steps], bool; may have holes; a row without any True stays 0.
        truncated: shape [rows], bool.
        missing_eos_penalty: >= 0, in units of the reward.

    Returns:
        Shape [rows, steps], 0.0 where the mask is False.
    """
    is_last = last_steps(mask=mask)
    final = outcome_rewards - missing_eos_penalty * truncated.to(outcome_rewards.dtype)
    zero = torch.zeros_like(kl)
    # `where`, not products with the masks: NaN in padding would stay NaN.
    return torch.where(mask, -kl_coef * kl, zero) + torch.where(is_last, final[:, None], zero)
