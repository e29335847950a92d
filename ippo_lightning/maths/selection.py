"""Which episodes are kept and what they weigh. Numbers of all ranks, such as a mean reward, are arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths.masked import masked_row_mean
from ippo_lightning.maths.shapes import RowFloats, RowMask, Scalar, StepFloats, StepMask


def keep_above(*, scores: RowFloats, threshold: float) -> RowMask:
    """Return which scores lie above the threshold. A score equal to the threshold does not.

    Source: with threshold 0, the filter of Shu et al. 2026, arXiv 2604.01597.

    Args:
        scores: shape [rows], float.
        threshold: in units of the scores.

    Returns:
        Shape [rows], bool.
    """
    return scores > threshold


def keep_random(*, num_episodes: int, num_kept: int, generator: torch.Generator) -> RowMask:
    """Return a random choice of `num_kept` episodes; all choices are equally likely.

    Args:
        num_episodes: how many there are.
        num_kept: in [0, num_episodes].
        generator: on the CPU; ranks that must choose alike use the same seed.

    Returns:
        Shape [num_episodes], bool.
    """
    keep = torch.zeros(num_episodes, dtype=torch.bool)
    keep[torch.randperm(num_episodes, generator=generator)[:num_kept]] = True
    return keep


def keep_positive_advantage(*, advantages: StepFloats, mask: StepMask) -> RowMask:
    """Return which episodes have a mean advantage above 0.

    Args:
        advantages: shape [rows, steps].
        mask: shape [rows, steps], bool, True = counts; may have holes.

    Returns:
        Shape [rows], bool.
    """
    return masked_row_mean(values=advantages, mask=mask) > 0


def keep_above_mean_reward(*, outcome_rewards: RowFloats, mean_reward: Scalar) -> RowMask:
    """Return which episodes have a reward above the mean.

    Args:
        outcome_rewards: shape [rows].
        mean_reward: shape [], over the episodes of all ranks.

    Returns:
        Shape [rows], bool.
    """
    return outcome_rewards > mean_reward


def keep_at_least(*, scores: RowFloats, keep: RowMask, min_keep: int) -> RowMask:
    """Return `keep` plus the dropped episodes with the highest scores, until `min_keep` are kept.

    Of equal scores the first comes first.

    Args:
        scores: shape [rows].
        keep: shape [rows], bool.
        min_keep: >= 0; a number above the number of episodes keeps all.

    Returns:
        Shape [rows], bool.
    """
    missing = min(min_keep, len(keep)) - int(keep.sum())
    if missing <= 0:
        return keep
    # Stable, so that all ranks and all runs break ties alike.
    ranked = scores.masked_fill(keep, -torch.inf).argsort(descending=True, stable=True)
    # A dropped episode may have the score -inf too, so the kept ones are taken out by name.
    ranked = ranked[~keep[ranked]]
    added = torch.zeros_like(keep)
    added[ranked[:missing]] = True
    return keep | added


def score_power(*, scores: RowFloats, keep: RowMask, power: float) -> RowFloats:
    """Return score^power for the kept episodes and 0 for the others: weights before they are normalised.

    A kept episode may have no positive score, because the threshold is negative or because too few were kept. It weighs
    as much as the lightest episode with a positive score, or 1 if there is none.

    Args:
        scores: shape [rows], of all ranks.
        keep: shape [rows], bool.
        power: >= 0; 1 is the weight of Shu et al. 2026, arXiv 2604.01597, and 0 gives 1 to each kept episode.

    Returns:
        Shape [rows], positive and finite for the kept episodes. If a power is too large or too small for the dtype, all
        are divided by the largest one, which changes no normalised weight.

    Raises:
        UserError: a kept score is infinite.
    """
    # 0 ** 0 is 1 but NaN ** 0 is 1 too: without powers the scores are not read at all.
    raw = torch.ones_like(scores) if power == 0 else _powers(scores, keep, power)
    # Compared after the power: a tiny score to a power above 1 can be zero in floating point.
    positive = raw[keep & (raw > 0)]
    least = positive.min() if positive.numel() else torch.ones_like(raw.sum())
    return torch.where(keep, torch.where(raw > 0, raw, least), torch.zeros_like(raw))


def normalise_weights(*, raw: RowFloats, keep: RowMask, max_weight: float | None = None) -> RowFloats:
    """Return weights with mean 1 over the kept episodes, none above `max_weight`.

    w_i = raw_i / (mean of the kept raw). What the cap takes off goes to the weights below the cap, in proportion, until
    the mean is 1 again.

    Args:
        raw: shape [rows], of all ranks, positive for the kept episodes and 0 for the others.
        keep: shape [rows], bool.
        max_weight: >= 1, or None for no cap.

    Returns:
        Shape [rows], finite.

    Raises:
        UserError: `max_weight` is below 1, so that no mean of 1 is possible; or a weight is NaN or infinite.
    """
    if max_weight is not None and not max_weight >= 1:
        raise UserError(f"max_weight: {max_weight} is out of range; expected a number >= 1")
    # float64: the mean is 1 to the last digit also for thousands of episodes
    total = raw.double().sum()
    # Without any weight there is no mean to divide by.
    if float(total) <= 0:
        return keep.to(raw.dtype)
    if not bool(torch.isfinite(raw).all()):
        raise UserError("weights: NaN or infinity; expected finite weights >= 0")
    factor = (keep.sum() / total).to(raw.dtype)
    # For weights near the ends of the range of their dtype, the factor is outside of it.
    is_normal = torch.finfo(raw.dtype).tiny <= float(factor) < math.inf
    weights = raw * factor if is_normal else _scaled(raw, keep)
    # A weight that rounds to 0 could take nothing of what the cap takes off the others.
    weights = torch.where(raw > 0, weights.clamp(min=torch.finfo(raw.dtype).tiny), weights)
    return weights if max_weight is None else _capped(weights, max_weight)


def effective_sample_size(*, weights: RowFloats) -> Scalar:
    """Return the number of equally weighted episodes that carry as much information as these weights.

    (sum w)^2 / sum w^2 (Kish 1965); 0 if all weights are 0.

    Args:
        weights: shape [rows], >= 0.

    Returns:
        Shape [].
    """
    # Divided by the largest weight where the squares leave the range of the dtype; elsewhere by 1, without rounding.
    squares = weights.square().sum()
    if weights.numel():
        is_normal = torch.isfinite(squares) & (squares >= _SMALLEST_SQUARES)
        weights = weights / torch.where(is_normal | (weights.max() <= 0), 1.0, weights.max())
        squares = weights.square().sum()
    # `where` computes both branches: the clamp keeps the one that is not taken from being 0 / 0
    return torch.where(squares > 0, weights.sum().square() / squares.clamp(min=torch.finfo(weights.dtype).tiny), 0.0)


_SMALLEST_SQUARES = 1e-30  # far above the numbers of float32 that have fewer digits, which begin at 1e-38


def _powers(scores: Tensor, keep: Tensor, power: float) -> Tensor:
    raw = scores.clamp(min=0) ** power
    positive = keep & (scores > 0)
    if not bool((positive & ((raw == 0) | raw.isinf())).any()):
        return raw
    largest = scores[positive].max()
    if not bool(torch.isfinite(largest)):
        raise UserError("scores: a kept score is infinite; expected finite scores")
    # At most 1, so nothing overflows; what rounds to 0 is kept and must stay above 0.
    relative = (scores.clamp(min=0) / largest) ** power
    return torch.where(positive, relative.clamp(min=torch.finfo(scores.dtype).tiny), relative)


def _scaled(raw: Tensor, keep: Tensor) -> Tensor:
    """Return weights with mean 1 over the kept episodes, whatever their size."""
    relative = raw.double() / raw.double().max()
    return (relative * (keep.sum() / relative.sum())).to(raw.dtype)


def _capped(weights: Tensor, max_weight: float) -> Tensor:
    """Cut at the cap and spread the rest over the weights below it; each round caps at least one more."""
    wanted = weights.sum()
    capped = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(len(weights)):
        over = ~capped & (weights > max_weight)
        if not bool(over.any()):
            break
        capped = capped | over
        below = torch.where(capped, torch.zeros_like(weights), weights)
        room = wanted - max_weight * int(capped.sum())
        if float(below.sum()) <= 0 or float(room) <= 0:  # reached only through rounding
            return torch.where(capped, max_weight, below)
        weights = torch.where(capped, torch.full_like(weights, max_weight), below * room / below.sum())
    return weights
