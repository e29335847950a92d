"""From one number an episode to one reward a token."""

from __future__ import annotations

import torch
from torch import Tensor


def shape_rewards(
    *,
    outcome_rewards: Tensor,
    kl: Tensor,
    kl_coef: float,
    response_mask: Tensor,
    truncated: Tensor,
    missing_eos_penalty: float,
) -> Tensor:
    """Put the outcome on the last response token and take the KL penalty off every token.

    r_t = -kl_coef * kl_t + [t is last] * (outcome - missing_eos_penalty * truncated)
    Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2, with the sum over tokens taken apart.

    Args:
        outcome_rewards: shape [rows].
        kl: nats a token, shape [rows, steps].
        kl_coef: >= 0.
        response_mask: shape [rows, steps], bool; a row without any True has no place for its outcome and stays 0.
        truncated: shape [rows], bool.
        missing_eos_penalty: >= 0, in units of the reward.

    Returns:
        Shape [rows, steps], 0.0 off the mask.
    """
    columns = torch.arange(kl.shape[1], device=kl.device)
    is_last = response_mask & (columns == response_mask.sum(dim=1, keepdim=True) - 1)
    final = outcome_rewards - missing_eos_penalty * truncated.to(outcome_rewards.dtype)
    zero = torch.zeros_like(kl)
    return torch.where(response_mask, -kl_coef * kl, zero) + torch.where(is_last, final[:, None], zero)
