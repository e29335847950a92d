"""Numbers that tell whether scores and directions are worth acting on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


def score_quantiles(scores: Tensor) -> dict[str, float]:
    """Summarise a set of scores, with linear interpolation between neighbours.

    Args:
        scores: influence scores, shape [episodes], float.

    Returns:
        `min`, `q10`, `q25`, `median`, `q75`, `q90`, `max`; all NaN when there are no episodes.

    Example:
        >>> score_quantiles(torch.tensor([0.0, 1.0, 2.0]))["q25"]
        0.5
    """
    if scores.numel() == 0:
        return dict.fromkeys(_QUANTILES, math.nan)
    values = scores.detach().to(dtype=torch.float64)
    levels = torch.tensor(list(_QUANTILES.values()), dtype=torch.float64, device=values.device)
    return dict(zip(_QUANTILES, torch.quantile(values, levels).tolist(), strict=True))


def gradient_norm(direction: Mapping[str, Tensor]) -> float:
    """Measure a direction's Euclidean length over all its blocks.

    norm(v) = sqrt(sum over blocks and entries of v^2), summed in float64.

    Args:
        direction: parameter name to block, any shape, float.

    Returns:
        The norm, >= 0; 0.0 for an empty direction.

    Example:
        >>> gradient_norm({"weight": torch.tensor([3.0]), "bias": torch.tensor([4.0])})
        5.0
    """
    return math.sqrt(sum(float(block.detach().to(dtype=torch.float64).square().sum()) for block in direction.values()))
