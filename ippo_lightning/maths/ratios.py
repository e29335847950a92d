"""Losses from the ratio of the policy under training to the policy that sampled, per step or per row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ippo_lightning.maths.masked import masked_row_mean, masked_row_sum


def clipped_surrogate(
    *, log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, delta: float = math.inf
) -> Tensor:
    """Return the negative clipped surrogate of each step, for ratios of steps or of rows.

    -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(log_ratio).
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; `delta` is the two-sided clipping of INTELLECT-2, 2025,
    arXiv 2505.07291.

    Args:
        log_ratio: log-prob of the policy under training minus that of the policy that sampled, nats, shape
            [rows, steps], or [rows, 1] for one ratio per row.
        advantages: shape [rows, steps].
        clip_low: > 0.
        clip_high: > 0.
        delta: the largest ratio of a step with a negative advantage, > 1 + clip_high; infinity for none.

    Returns:
        Shape [rows, steps].
    """
    # The minimum makes the clipping one-sided: it stops a step that has gone too far, never one that comes back.
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    # The clipped branch wins for a positive advantage, so this bound matters only for a negative one.
    ratio = ratio if math.isinf(delta) else ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantages, bounded)


def sequence_log_ratio(*, log_ratio: Tensor, mask: Tensor, is_mean: bool) -> Tensor:
    """Return the log-ratio of each row: the mean over its steps, or their sum.

    The mean is that of GSPO, Zheng et al. 2025, arXiv 2507.18071. The sum is the log of the ratio of the
    probabilities of the complete responses.

    Args:
        log_ratio: nats, shape [rows, steps].
        mask: shape [rows, steps], bool; may have holes.
        is_mean: False for the sum.

    Returns:
        Nats, shape [rows, 1], 0.0 for a row without any step.
    """
    reduce = masked_row_mean if is_mean else masked_row_sum
    return reduce(values=log_ratio, mask=mask)[:, None]


def capped_ratio_terms(*, log_ratio: Tensor, advantages: Tensor, cap: float) -> Tensor:
    """Return the loss whose gradient is that of CISPO: the policy gradient, weighted by the ratio up to a cap.

    -A F(r), F(r) = r up to the cap and cap (1 + log(r / cap)) above. The gradient is -A min(r, cap) grad log pi.
    Source: CISPO, MiniMax 2025, arXiv 2506.13585. Differs in the value: there the loss is
    -stopgrad(min(r, cap)) A log pi, which has the same gradient. But its weight changes with the parameters too, so a
    difference of two of its values is no derivative. Here it is one.

    Args:
        log_ratio: nats, shape [rows, steps].
        advantages: shape [rows, steps].
        cap: the largest weight, > 0.

    Returns:
        Shape [rows, steps].
    """
    limit = math.log(cap)
    # Clamped before the exponential: `where` differentiates both branches, and infinity times 0 is NaN.
    below = log_ratio.clamp(max=limit).exp()
    return -advantages * torch.where(log_ratio <= limit, below, cap * (1 + log_ratio - limit))
