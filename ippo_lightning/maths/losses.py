"""PPO's losses a token, and how tokens become one number with the denominator handed in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths.masked import masked_row_mean, masked_sum

LossReduction = Literal["episode_mean", "token_mean"]


def policy_loss_terms(*, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return the negative clipped surrogate of each token.

    -min(r A, clip(r, 1 - clip_range, 1 + clip_range) A), r = exp(log_probs - old_log_probs).
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7.

    Args:
        log_probs: of the policy under training, nats, shape [rows, steps].
        old_log_probs: of the policy that sampled, nats, shape [rows, steps].
        advantages: shape [rows, steps].
        clip_range: > 0.

    Returns:
        Shape [rows, steps].
    """
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def value_loss_terms(*, values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Return half the squared error of the critic, the larger of the clipped and the unclipped.

    0.5 * max((v - R)^2, (v_old + clip(v - v_old, -clip_range, clip_range) - R)^2)
    Source: the PPO reference implementation, described in Huang et al. 2022, "The 37 Implementation Details of PPO".

    Args:
        values: of the critic under training, shape [rows, steps].
        old_values: of the critic at rollout, shape [rows, steps].
        returns: regression targets, shape [rows, steps].
        clip_range: > 0; infinity for no clipping.

    Returns:
        Shape [rows, steps].
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def reduce_terms(
    *, terms: Tensor, mask: Tensor, weights: Tensor, reduction: LossReduction, denominator: Tensor | float
) -> Tensor:
    """Return the weighted sum over episodes, divided by a denominator that the caller knows.

    sum_i w_i * (mean over the tokens of i) / denominator for `episode_mean`, the denominator being a number of
    episodes; sum_i w_i * (sum over the tokens of i) / denominator for `token_mean`, it being a number of tokens. Handed
    in, so that micro-batches and ranks add up to the undivided minibatch.

    Args:
        terms: shape [rows, steps].
        mask: shape [rows, steps], bool; a row without any True adds 0.
        weights: shape [rows].
        reduction: see above.
        denominator: shape [] or a number, > 0.

    Returns:
        Shape [].

    Raises:
        UserError: another reduction.
    """
    if reduction == "episode_mean":
        per_episode = masked_row_mean(values=terms, mask=mask)
    elif reduction == "token_mean":
        per_episode = torch.where(mask, terms, torch.zeros_like(terms)).sum(dim=1)
    else:
        raise UserError(f"loss_reduction: '{reduction}' is unknown; expected episode_mean or token_mean")
    return (weights.to(terms.dtype) * per_episode).sum() / denominator


def update_diagnostics(
    *, log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip_range: float
) -> dict[str, Tensor]:
    """Return sums over the masked tokens that tell how far the policy has moved; never means, so that they add up.

    Args:
        log_probs: of the policy under training, nats, shape [rows, steps].
        old_log_probs: of the policy that sampled, nats, shape [rows, steps].
        mask: shape [rows, steps], bool.
        clip_range: > 0.

    Returns:
        `clipped_tokens`, `approx_kl_sum` (k3 form, nats), `ratio_sum`, `tokens`; each [] float.
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, torch.zeros_like(log_probs))
    ratio = log_ratio.exp()
    return {
        "clipped_tokens": masked_sum(values=((ratio - 1).abs() > clip_range).to(ratio.dtype), mask=mask),
        "approx_kl_sum": masked_sum(values=log_ratio.expm1() - log_ratio, mask=mask),
        "ratio_sum": masked_sum(values=ratio, mask=mask),
        "tokens": mask.sum().to(ratio.dtype),
    }
