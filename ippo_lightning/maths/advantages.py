"""Generalised advantage estimation, for text and for control."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    *,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return advantages by generalised advantage estimation.

    delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
    A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 11 to 16. Differs in keeping apart what ends the bootstrap
    (`terminated`) and what ends the trace (`done`). Steps off the mask are passed over as if they were not there.

    Args:
        rewards: shape [rows, steps].
        values: V(s_t), shape [rows, steps].
        next_values: V(s_{t+1}), shape [rows, steps].
        terminated: shape [rows, steps], bool, True where nothing comes after the step.
        done: shape [rows, steps], bool, True where the next step belongs to another trajectory.
        mask: shape [rows, steps], bool, True = counts.
        gamma: discount a step, in [0, 1].
        gae_lambda: trace decay a step, in [0, 1].

    Returns:
        Shape [rows, steps], 0.0 off the mask.
    """
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    later = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.new_zeros(len(rewards))
    columns = []
    for step in reversed(range(rewards.shape[1])):
        counts = mask[:, step]
        current = delta[:, step] + gamma * gae_lambda * torch.where(done[:, step], 0.0, later)
        later = torch.where(counts, current, later)
        columns.append(torch.where(counts, current, torch.zeros_like(current)))
    return torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)


def response_gae(
    *,
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_truncated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns of responses padded on the right.

    Args:
        rewards: shape [rows, steps].
        values: shape [rows, steps].
        response_mask: shape [rows, steps], bool, a run of True from the first column on.
        truncated: shape [rows], bool, True where the length limit cut the response.
        gamma: discount a token, in [0, 1].
        gae_lambda: trace decay a token, in [0, 1].
        bootstrap_truncated: False treats a cut response as ended (its answer is missing, so nothing is to come); True
            takes the value at its last token for what would have come.

    Returns:
        advantages and returns (advantages + values), each [rows, steps], 0.0 off the mask.
    """
    columns = torch.arange(rewards.shape[1], device=rewards.device)
    is_last = response_mask & (columns == response_mask.sum(dim=1, keepdim=True) - 1)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    terminated = is_last
    if bootstrap_truncated:
        terminated = is_last & ~truncated[:, None]
        next_values = torch.where(is_last, values, next_values)
    advantages = gae(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=terminated,
        done=is_last,
        mask=response_mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    return advantages, torch.where(response_mask, advantages + values, torch.zeros_like(values))
