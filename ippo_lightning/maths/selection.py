"""Which episodes are kept and what they weigh: pure rules, with sums handed in where ranks share a mean."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths.masked import masked_row_mean


def keep_above(*, scores: Tensor, threshold: float) -> Tensor:
    """Return which scores lie above the threshold; one equal to it does not.

    Source: with threshold 0 the filter of Shu et al. 2026, arXiv 2604.01597.

    Args:
        scores: shape [rows], float.
        threshold: in units of the scores.

    Returns:
        Shape [rows], bool.
    """
    return scores > threshold


def keep_random(*, num_episodes: int, num_kept: int, generator: torch.Generator) -> Tensor:
    """Return a random choice of `num_kept` episodes, every choice as likely.

    Args:
        num_episodes: to choose from.
        num_kept: in [0, num_episodes].
        generator: source of the randomness.

    Returns:
        Shape [num_episodes], bool.
    """
    keep = torch.zeros(num_episodes, dtype=torch.bool)
    keep[torch.randperm(num_episodes, generator=generator)[:num_kept]] = True
    return keep


def keep_positive_advantage(*, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return which episodes have a mean advantage above 0.

    Args:
        advantages: shape [rows, steps].
        mask: shape [rows, steps], bool.

    Returns:
        Shape [rows], bool.
    """
    return masked_row_mean(values=advantages, mask=mask) > 0


def keep_above_mean_reward(*, outcome_rewards: Tensor, mean_reward: Tensor) -> Tensor:
    """Return which episodes were rewarded above the mean.

    Args:
        outcome_rewards: shape [rows].
        mean_reward: shape [], of the episodes of all ranks.

    Returns:
        Shape [rows], bool.
    """
    return outcome_rewards > mean_reward


def keep_at_least(*, scores: Tensor, keep: Tensor, min_keep: int) -> Tensor:
    """Return `keep` with the highest-scoring dropped episodes added until `min_keep` are kept (ties: first come).

    Args:
        scores: shape [rows].
        keep: shape [rows], bool.
        min_keep: >= 0; more than there are keeps all.

    Returns:
        Shape [rows], bool.
    """
    missing = min(min_keep, len(keep)) - int(keep.sum())
    if missing <= 0:
        return keep
    ranked = scores.masked_fill(keep, -torch.inf).argsort(descending=True, stable=True)
    ranked = ranked[~keep[ranked]]
    added = torch.zeros_like(keep)
    added[ranked[:missing]] = True
    return keep | added


def score_power(*, scores: Tensor, keep: Tensor, power: float) -> Tensor:
    """Return score^power on the kept episodes and 0 elsewhere: weights before they are normalised.

    A kept episode without a positive score (below 0 by `threshold`, or brought back by `min_keep`) weighs as much as
    the lightest of those with one, or 1 where nobody has.

    Args:
        scores: shape [rows], of all ranks.
        keep: shape [rows], bool.
        power: >= 0; 1 as in Shu et al. 2026, arXiv 2604.01597, 0 gives 1 to every kept episode.

    Returns:
        Shape [rows], positive where kept.
    """
    raw = torch.ones_like(scores) if power == 0 else scores.clamp(min=0) ** power
    # a tiny score to a power may be zero in floating point
    positive = raw[keep & (raw > 0)]
    least = positive.min() if positive.numel() else torch.ones_like(raw.sum())
    return torch.where(keep, torch.where(raw > 0, raw, least), torch.zeros_like(raw))


def normalise_weights(*, raw: Tensor, keep: Tensor, max_weight: float | None = None) -> Tensor:
    """Return weights with mean 1 over the kept, none above `max_weight`.

    w_i = raw_i / mean of the kept raw. Where a cap bites, what it takes off goes to the weights below it, in
    proportion, until the mean is 1 again.

    Args:
        raw: shape [rows], of all ranks, positive where kept and 0 elsewhere.
        keep: shape [rows], bool.
        max_weight: >= 1, or None for no cap.

    Returns:
        Shape [rows].

    Raises:
        UserError: `max_weight` below 1, with which no mean of 1 is possible.
    """
    if max_weight is not None and not max_weight >= 1:
        raise UserError(f"max_weight: {max_weight} is out of range; expected a number >= 1")
    total = raw.double().sum()
    if float(total) <= 0:
        return keep.to(raw.dtype)
    weights = raw * (keep.sum() / total).to(raw.dtype)
    return weights if max_weight is None else _capped(weights, max_weight)


def effective_sample_size(*, weights: Tensor) -> Tensor:
    """Return how many equally weighted episodes these weights are worth.

    (sum w)^2 / sum w^2 (Kish 1965); 0 where all weights are 0.

    Args:
        weights: shape [rows], >= 0.

    Returns:
        Shape [].
    """
    squares = weights.square().sum()
    return torch.where(squares > 0, weights.sum().square() / squares.clamp(min=torch.finfo(weights.dtype).tiny), 0.0)


def _capped(weights: Tensor, max_weight: float) -> Tensor:
    """Cut at the cap and spread the rest over what is below it; each round caps at least one more."""
    wanted = weights.sum()
    capped = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(len(weights)):
        over = ~capped & (weights > max_weight)
        if not bool(over.any()):
            break
        capped = capped | over
        below = torch.where(capped, torch.zeros_like(weights), weights)
        room = wanted - max_weight * int(capped.sum())
        if float(below.sum()) <= 0 or float(room) <= 0:  # only rounding leads here
            return torch.where(capped, max_weight, below)
        weights = torch.where(capped, torch.full_like(weights, max_weight), below * room / below.sum())
    return weights
