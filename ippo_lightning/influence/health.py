"""Numbers that show how far scores and directions can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import inner_product
from ippo_lightning.influence.directions import Direction

_QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


def score_quantiles(scores: Tensor) -> dict[str, float]:
    """Return quantiles of a set of scores, with linear interpolation.

    Args:
        scores: influence scores, shape [rows], float.

    Returns:
        `min`, `q10`, `q25`, `median`, `q75`, `q90`, `max`; all NaN for no rows.

    Example:
        >>> score_quantiles(torch.tensor([0.0, 1.0, 2.0]))["q25"]
        0.5
    """
    if scores.numel() == 0:
        return dict.fromkeys(_QUANTILES, math.nan)
    # torch.quantile refuses half precision.
    values = scores.detach().to(dtype=torch.float64)
    levels = torch.tensor(list(_QUANTILES.values()), dtype=torch.float64, device=values.device)
    return dict(zip(_QUANTILES, torch.quantile(values, levels).tolist(), strict=True))


def gradient_norm(direction: Direction) -> float:
    """Return a direction's Euclidean norm over all its blocks.

    norm(v) = sqrt(sum over blocks and entries of v^2), summed in float64.

    Args:
        direction: parameter name to block, any shape, float.

    Returns:
        The norm, >= 0; 0.0 for an empty direction.

    Example:
        >>> gradient_norm({"weight": torch.tensor([3.0]), "bias": torch.tensor([4.0])})
        5.0
    """
    blocks = list(direction.values())
    return math.sqrt(inner_product(blocks, blocks))


def score_intervals(
    group_scores: Tensor,
    *,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Bootstrap a confidence interval of every row's score over groups of demonstrations.

    Groups are drawn with replacement; a score is the weighted mean over the drawn groups.
    Source: Efron 1979, the percentile interval.

    Args:
        group_scores: scores along each group's gradient, shape [groups, rows], float.
        weights: number of demonstrations in each group; None weights all groups equally.
        confidence: confidence level, in (0, 1).
        num_resamples: number of draws.
        generator: random generator of the draws, on the CPU.

    Returns:
        Lower and upper ends, shape [rows] each.
    """
    num_groups = len(group_scores)
    group_weights = torch.ones(num_groups) if weights is None else torch.tensor(list(weights))
    # On the CPU, whose generator draws the same numbers whatever device the scores are on.
    drawn = torch.randint(num_groups, (num_resamples, num_groups), generator=generator)
    # How often each draw contains each group: one matrix product then gives the means of all draws.
    counts = torch.zeros(num_resamples, num_groups).scatter_add_(1, drawn, torch.ones(drawn.shape)) * group_weights
    means = (counts / counts.sum(dim=1, keepdim=True)).to(group_scores) @ group_scores
    tail = (1 - confidence) / 2
    ends = torch.quantile(means, torch.tensor([tail, 1 - tail]).to(means), dim=0)
    return ends[0], ends[1]


def sign_certainty(low: Tensor, high: Tensor) -> float:
    """Return the fraction of rows whose interval excludes zero; NaN for no rows.

    Args:
        low: lower ends, shape [rows].
        high: upper ends, shape [rows].

    Example:
        >>> sign_certainty(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.5
    """
    return float(((low > 0) | (high < 0)).float().mean())


def sign_agreement(first: Tensor, second: Tensor) -> float:
    """Return the fraction of rows for which two sets of scores have the same sign; NaN for no rows.

    Args:
        first: shape [rows].
        second: shape [rows].

    Example:
        >>> sign_agreement(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 3.0]))
        0.5
    """
    return float((first.sign() == second.sign()).float().mean())


def agree_to_drop(group_scores: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return a mask [rows], True if the row's scores along all groups of demonstrations are at most a threshold.

    Args:
        group_scores: shape [groups, rows].
        threshold: scores up to and including it count as reasons to drop.
    """
    return (group_scores <= threshold).all(dim=0)
