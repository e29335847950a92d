"""How far scores can be trusted, as numbers for the log."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ippo_lightning.influence import score_intervals, sign_agreement, sign_certainty
from ippo_lightning.maths import effective_sample_size

# The first pattern that matches counts: `post_attention_layernorm` is a norm, and so is `q_norm` of an attention.
_PARTS = {
    "embedding": re.compile(r"embed|lm_head|wte|wpe"),
    "norm": re.compile(r"norm|\bln_|layernorm"),
    "attention": re.compile(r"attn|attention|[qkvo]_proj|query|key|value"),
    "mlp": re.compile(r"mlp|gate|up_proj|down_proj|c_fc|\bfc\d|dense"),
}


def part_of(name: str) -> str:
    """Return the part of a model that a parameter belongs to, by its name.

    Args:
        name: of the parameter.

    Returns:
        `embedding`, `attention`, `mlp`, `norm`, or `other`.

    Example:
        >>> part_of("model.layers.0.post_attention_layernorm.weight")
        'norm'
    """
    return next((kind for kind, pattern in _PARTS.items() if pattern.search(name)), "other")


def part_fractions(by_parameter: Mapping[str, Tensor]) -> dict[str, float]:
    """Return which parts of a model the scores come from.

    fraction = sum over the part's parameters and rows of |part of the score|, divided by the same sum over all parts

    Args:
        by_parameter: parameter name to its part of the scores, shape [rows].

    Returns:
        `embedding`, `attention`, `mlp`, `norm`, `other` to its fraction, without parts that the model lacks; they sum
        to 1. Empty if each score is zero.
    """
    sums: dict[str, float] = {}
    for name, part in by_parameter.items():
        kind = part_of(name)
        sums[kind] = sums.get(kind, 0.0) + float(part.abs().sum())
    total = sum(sums.values())
    return {kind: value / total for kind, value in sums.items()} if total > 0 else {}


def health_of(group_scores: Tensor, *, halves_cosine: float | None) -> dict[str, float]:
    """Return how far groups of demonstrations agree; nothing if there are no groups.

    Args:
        group_scores: scores along each group, of the rows of all ranks, shape [groups, rows]; NaN for rows outside of
            the sample that was scored along the groups.
        halves_cosine: of the two halves' gradients; None if there are no groups.

    Returns:
        Names for `UpdatePlan.record`, over the sampled rows: `halves_cosine`; `halves_sign_agreement`, the fraction of
        rows that both halves give the same sign; `sign_certain_fraction`, the fraction of rows whose 95 % bootstrap
        interval over groups excludes zero; `interval_width`, its median over the median |score|.
    """
    group_scores = group_scores[:, ~group_scores.isnan().any(dim=0)]
    if halves_cosine is None or not group_scores.numel():
        return {}
    # every second group is of the same half, as in `GroupAgreement`
    first, second = (group_scores[start::2].mean(dim=0) for start in (0, 1))
    # a generator of its own: the run's random stream stays that of plain PPO
    generator = torch.Generator().manual_seed(0)
    low, high = score_intervals(group_scores, generator=generator)
    scale = group_scores.mean(dim=0).abs().median().clamp(min=torch.finfo(group_scores.dtype).tiny)
    return {
        "influence__halves_cosine": halves_cosine,
        "influence__halves_sign_agreement": sign_agreement(first, second),
        "influence__sign_certain_fraction": sign_certainty(low, high),
        # relative, because the unit of the scores depends on the model and on the loss
        "influence__interval_width": float((high - low).median() / scale),
    }


def weight_metrics(factors: Tensor) -> dict[str, float]:
    """Return numbers about the weights of all ranks, for `UpdatePlan.record`.

    Args:
        factors: shape [rows], 0 for rows that are dropped.
    """
    # As one column of several: torch sums a contiguous tensor in another order, and the last bit of the effective
    # sample size would depend on how many columns are gathered.
    factors = torch.stack([factors, factors], dim=1)[:, 0]
    return {
        "influence__scored_kept_fraction": int((factors > 0).sum()) / max(len(factors), 1),
        "influence__effective_sample_size": float(effective_sample_size(weights=factors)),
        "influence__max_weight": float(factors.max()) if len(factors) else 0.0,
    }
