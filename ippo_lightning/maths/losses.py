"""PPO's losses per step, and their reduction to one number with a denominator that the caller passes."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths.masked import masked_row_mean, masked_row_sum, masked_sum
from ippo_lightning.maths.ratios import clipped_surrogate

LossReduction = Literal["episode_mean", "token_mean", "rollout_token_mean", "fixed_length"]


def policy_loss_terms(
    *, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Return the negative clipped surrogate of each step.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(log_probs - old_log_probs).
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7.

    Args:
        log_probs: of the policy under training, nats, shape [rows, steps].
        old_log_probs: of the policy that sampled, nats, shape [rows, steps].
        advantages: shape [rows, steps].
        clip_low: > 0.
        clip_high: > 0.

    Returns:
        Shape [rows, steps].
    """
    return clipped_surrogate(
        log_ratio=log_probs - old_log_probs, advantages=advantages, clip_low=clip_low, clip_high=clip_high
    )


def truncated_importance(*, log_ratio: Tensor, cap: float) -> Tensor:
    """Return min(exp(log_ratio), cap): how much a step counts that was sampled from another distribution.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; truncated as in
    Ionides 2008, "Truncated importance sampling".

    Args:
        log_ratio: log-prob of the policy minus that of the sampler, nats, shape [rows, steps].
        cap: the largest weight, >= 1.

    Returns:
        Shape [rows, steps].
    """
    # The cap inside the exponent: exp of a large gap is infinite, and infinity times an advantage of 0 is NaN.
    return log_ratio.clamp(max=math.log(cap)).exp()


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
    # The maximum: clipping can only raise the loss, so it never hides an error of the critic.
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def reduce_terms(
    *,
    terms: Tensor,
    mask: Tensor,
    weights: Tensor,
    reduction: LossReduction,
    denominator: Tensor | float,
    max_length: int | None = None,
) -> Tensor:
    """Return the weighted sum over rows, divided by a denominator.

    `episode_mean`: sum_i w_i * (mean over the steps of i) / denominator, a number of rows.
    `token_mean`, `rollout_token_mean`: sum_i w_i * (sum over the steps of i) / denominator, a number of steps.
    `fixed_length`: sum_i w_i * (sum over the steps of i) / max_length / denominator, a number of rows.
    The caller passes the denominator, so that micro-batches and ranks add up to the whole minibatch.

    Args:
        terms: shape [rows, steps].
        mask: shape [rows, steps], bool; a row without any True adds 0.
        weights: shape [rows].
        reduction: see above.
        denominator: shape [] or a number, > 0.
        max_length: steps, for `fixed_length` only.

    Returns:
        Shape [].

    Raises:
        UserError: another reduction.
    """
    if reduction == "episode_mean":
        per_row = masked_row_mean(values=terms, mask=mask)
    elif reduction in ("token_mean", "rollout_token_mean"):
        per_row = masked_row_sum(values=terms, mask=mask)
    elif reduction == "fixed_length":
        assert max_length is not None, "a length is what this reduction divides by"
        per_row = masked_row_sum(values=terms, mask=mask) / max_length
    else:
        known = ", ".join(get_args(LossReduction))
        raise UserError(f"reduction: '{reduction}' is unknown; expected one of {known}")
    return (weights.to(terms.dtype) * per_row).sum() / denominator


def update_diagnostics(
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    clipped_log_ratio: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return sums over the steps that count, of how far the policy has moved; sums, because means do not add up.

    Args:
        log_probs: of the policy under training, nats, shape [rows, steps].
        old_log_probs: of the policy that sampled, nats, shape [rows, steps].
        mask: shape [rows, steps], bool.
        clip_low: > 0; infinity where nothing is clipped.
        clip_high: > 0; infinity where nothing is clipped.
        clipped_log_ratio: log of the ratio that the loss clips, nats, shape [rows, steps] or [rows, 1]; None for that
            of each step.

    Returns:
        `clipped_tokens`, `approx_kl_sum` (k3 form, nats), `ratio_sum`, `tokens`; each [] float.
    """
    # Before the exponential, which what stands in padding could overflow.
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    clipped = log_ratio if clipped_log_ratio is None else torch.where(mask, clipped_log_ratio, 0.0)
    ratio = clipped.exp()
    # For both signs of the advantage: this number measures how far the ratios have moved, not where the loss is flat.
    is_clipped = (ratio - 1 > clip_high) | (1 - ratio > clip_low)
    return {
        # Where the mask is False, the ratio is 1: nothing is clipped there, and the divergence is 0.
        "clipped_tokens": is_clipped.sum().to(ratio.dtype),
        # expm1: near equality, exp(x) - 1 would only be the rounding of 1.
        "approx_kl_sum": (log_ratio.expm1() - log_ratio).sum(),
        "ratio_sum": masked_sum(values=ratio, mask=mask),
        "tokens": mask.sum().to(ratio.dtype),
    }
