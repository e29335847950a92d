"""What can be done to a direction: choose its parameters, scale it as Adam would, average and compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import full_tensor, inner_product, sharded_like
from ippo_lightning.errors import UserError
from ippo_lightning.influence.model_state import trainable_parameters


def select_blocks(
    direction: Mapping[str, Tensor], *, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Keep the blocks of some parameters, so that scores speak of these alone.

    Args:
        direction: parameter name to block.
        include: shell patterns of names that stay (`*layers.3.*`); None for all.
        exclude: shell patterns of names that go, also where `include` has them.

    Returns:
        The chosen blocks, in the order of `direction`.

    Raises:
        UserError: a pattern that fits no name, or nothing left.
    """
    for option, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in direction):
                known = next(iter(direction), "no parameter")
                raise UserError(f"{option}: '{pattern}' fits no parameter of the direction; its names are like {known}")
    chosen = {
        name: block
        for name, block in direction.items()
        if (include is None or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise UserError(f"exclude: {list(exclude)} leaves no parameter of the direction; expected at least one")
    return chosen


def precondition(direction: Mapping[str, Tensor], *, model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Scale a direction as Adam scales a gradient, which makes scores the first-order effect of an Adam step.

    block / (sqrt(v_hat) + eps), v_hat = exp_avg_sq / (1 - beta2^step), of the optimizer's present state. Held fixed,
    the second moment makes the step linear in each episode's gradient: d theta / d g_i is diagonal.
    Source: Xia et al. 2024, arXiv 2402.04333 (LESS), section 2.2, with the scaling moved to the other side.

    Args:
        direction: parameter name to block.
        model: whose `named_parameters()` the names are.
        optimizer: Adam, AdamW or a wrapper of one with `.optimizer`, with its state.

    Returns:
        The scaled direction. Before the first optimizer step it is returned as it is. A parameter that has no state
        while others have (no gradient ever reached it) is scaled by the median of the others' median scales.

    Raises:
        UserError: an optimizer without Adam's second moments.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    parameters = trainable_parameters(model)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    scales: dict[str, Tensor] = {}
    for name in direction:
        state = optimizer.state.get(parameters[name], {}) if name in parameters else {}
        if state:
            scales[name] = _adam_scale(state, groups[id(parameters[name])], type(optimizer).__name__)
    if not scales:
        return dict(direction)
    usual = 1.0
    if len(scales) < len(direction):
        usual = float(torch.stack([full_tensor(scale).double().median().cpu() for scale in scales.values()]).median())
    return {
        name: block * (sharded_like(scales[name], block).to(dtype=block.dtype) if name in scales else usual)
        for name, block in direction.items()
    }


def mean_direction(
    directions: Sequence[Mapping[str, Tensor]], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Average directions over the same parameters.

    Args:
        directions: at least one, all with the same names.
        weights: one a direction, >= 0, not all zero; None counts each alike.

    Raises:
        UserError: no direction, or names that differ.
    """
    if not directions or any(entry.keys() != directions[0].keys() for entry in directions):
        raise UserError("directions: expected at least one, and all with the same parameters")
    shares = [1.0] * len(directions) if weights is None else list(weights)
    total = sum(shares)
    return {
        name: sum((entry[name] * (share / total) for entry, share in zip(directions, shares, strict=True)), 0 * block)
        for name, block in directions[0].items()
    }


def halves_agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the cosine between two directions over the same parameters; 0.0 where one of them is zero.

    Args:
        first: for example the gradient of one half of the demonstrations.
        second: that of the other half.

    Example:
        >>> halves_agreement({"weight": torch.tensor([3.0, 4.0])}, {"weight": torch.tensor([4.0, 3.0])})
        0.96
    """
    one, other = list(first.values()), [second[name] for name in first]
    both, length = inner_product(one, other), math.sqrt(inner_product(one, one) * inner_product(other, other))
    return both / length if length > 0 else 0.0


def _adam_scale(state: Mapping[str, Any], group: Mapping[str, Any], kind: str) -> Tensor:
    """Return 1 / (sqrt(v_hat) + eps)."""
    if "exp_avg_sq" not in state:
        raise UserError(f"optimizer: {kind} keeps no second moments (exp_avg_sq); expected Adam or AdamW")
    _, beta2 = group["betas"]
    second: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - beta2 ** float(state["step"])
    return 1 / ((second / correction).sqrt() + group["eps"])
