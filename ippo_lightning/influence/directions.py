"""Directions that episodes are scored against: select, scale, average and compare them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import (
    full_tensor,
    inner_product,
    sharded_like,
)
from ippo_lightning.errors import UserError
from ippo_lightning.influence.model_state import trainable_parameters

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)

Direction = Mapping[str, Tensor]
"""Parameter name to block: a tensor of the parameter's shape, sharded if the parameter is."""


class OptimizerWrapper(Protocol):
    """An object around an optimizer, such as those of Lightning and Fabric."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | OptimizerWrapper:
        """The wrapped optimizer."""


def select_blocks(
    direction: Direction, *, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Keep the blocks of some parameters, so that scores measure only the effect through these parameters.

    Args:
        direction: parameter name to block.
        include: shell patterns of names to keep (`*layers.3.*`); None keeps all.
        exclude: shell patterns of names to remove, even if `include` matches them.

    Returns:
        The selected blocks, in the order of `direction`.

    Raises:
        UserError: a pattern matches no name, or no block is left.
    """
    # A misspelt pattern would otherwise exclude nothing, without any sign of it.
    for option, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in direction):
                known = next(iter(direction), "no parameter")
                raise UserError(
                    f"{option}: '{pattern}' matches no parameter of the direction; one of its names is '{known}'"
                )
    chosen = {
        name: block
        for name, block in direction.items()
        if (include is None or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise UserError(f"exclude: {list(exclude)} leaves no parameter of the direction; expected at least one")
    return chosen


def precondition(
    direction: Direction,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | OptimizerWrapper,
    in_place: bool = False,
) -> dict[str, Tensor]:
    """Scale a direction as Adam scales a gradient; scores then are the first-order effect of an Adam step.

    block / (sqrt(v_hat) + eps), v_hat = exp_avg_sq / (1 - beta2^step), from the optimizer's current state. With the
    second moment held fixed, the step is linear in each episode's gradient: d theta / d g_i is diagonal.
    Source: Xia et al. 2024, arXiv 2402.04333 (LESS), section 2.2; here the scaling is applied to the target gradient
    instead of to each episode's gradient.

    Args:
        direction: parameter name to block.
        model: the module whose `named_parameters()` has these names.
        optimizer: Adam or AdamW with its state, or a wrapper with the attribute `optimizer`.
        in_place: whether the blocks may be overwritten, which saves a copy of the direction.

    Returns:
        The scaled direction. Before the first optimizer step the direction is returned unchanged. A parameter that has
        no state while others have (it never received a gradient) is scaled by the median of the others' median scales.

    Raises:
        UserError: no optimizer, or one without Adam's second moments.
    """
    adam = require_adam(optimizer)
    parameters = trainable_parameters(model)
    groups = {id(parameter): group for group in adam.param_groups for parameter in group["params"]}
    states: dict[str, Mapping[str, Any]] = {}
    for name in direction:
        # `get`, because the state is a defaultdict: an index would add an entry to the optimizer.
        state = adam.state.get(parameters[name], {}) if name in parameters else {}
        if state:
            states[name] = state
    if not states:
        return dict(direction)

    def scale_of(name: str) -> Tensor:  # when it is needed: all scales together are as large as the direction
        return _adam_scale(states[name], groups[id(parameters[name])], type(adam).__name__)

    usual = 1.0
    if len(states) < len(direction):
        # Scale 1 would be wrong by orders of magnitude: 1 / (sqrt(v_hat) + eps) is often 1e4 and more.
        # Medians and not means: an entry with v_hat = 0 has the scale 1 / eps, which would outweigh all others.
        usual = float(torch.stack([full_tensor(scale_of(name)).double().median().cpu() for name in states]).median())
    scaled = {}
    for name, block in direction.items():
        # The optimizer's state is sharded like the parameter, but a small direction may be full.
        scale = sharded_like(scale_of(name), block).to(dtype=block.dtype) if name in states else usual
        scaled[name] = block.mul_(scale) if in_place else block * scale
    return scaled


def mean_direction(directions: Sequence[Direction], *, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average directions over the same parameters.

    Args:
        directions: at least one, all with the same names.
        weights: one number per direction, >= 0, not all zero; None weights all directions equally.

    Raises:
        UserError: no direction, or directions with different names.
    """
    if not directions or any(entry.keys() != directions[0].keys() for entry in directions):
        raise UserError("directions: expected at least one, and all with the same parameters")
    factors = [1.0] * len(directions) if weights is None else list(weights)
    total = sum(factors)
    mean: dict[str, Tensor] = {}
    for entry, factor in zip(directions, factors, strict=True):
        add_weighted(mean, entry, factor / total)
    return mean


def add_weighted(total: dict[str, Tensor], direction: Direction, factor: float) -> None:
    """Add a direction times a factor to a sum in place; with all of them, the sum is the `mean_direction`.

    Args:
        total: parameter name to the sum so far; empty before the first direction.
        direction: parameter name to block; its blocks are not kept.
        factor: for example 1 / number of directions.
    """
    for name, block in direction.items():
        if name in total:
            total[name] += block * factor
        else:
            total[name] = block * factor


def halves_agreement(first: Direction, second: Direction) -> float:
    """Return the cosine between two directions over the same parameters; 0.0 if one of them is zero.

    Args:
        first: for example the gradient of one half of the demonstrations.
        second: for example the gradient of the other half.

    Example:
        >>> halves_agreement({"weight": torch.tensor([3.0, 4.0])}, {"weight": torch.tensor([4.0, 3.0])})
        0.96
    """
    # By name: the two dictionaries may have different orders.
    one, other = list(first.values()), [second[name] for name in first]
    both, length = inner_product(one, other), math.sqrt(inner_product(one, one) * inner_product(other, other))
    return both / length if length > 0 else 0.0


def require_adam(optimizer: torch.optim.Optimizer | OptimizerWrapper) -> torch.optim.Optimizer:
    """Return an optimizer without its wrappers, and refuse one that is known to keep no second moments of Adam's.

    Args:
        optimizer: also before its first step, when it has no state.

    Raises:
        UserError: its settings, its state or its library show that it keeps none.
    """
    found = _unwrapped(optimizer)
    # Fabric wraps by a class of its own, which has the original.
    kind = type(getattr(found, "optimizer", found))
    # SGD without momentum never has a state, so the state alone would not show it.
    is_adam = all("betas" in group for group in found.param_groups)
    # Moments of bitsandbytes have other names, and in eight bits they are codes.
    if not is_adam or kind.__module__.startswith("bitsandbytes"):
        raise _no_moments(kind.__name__)
    return found


def _no_moments(kind: str) -> UserError:
    return UserError(f"optimizer: {kind} keeps no second moments (exp_avg_sq); expected Adam or AdamW of torch")


def _unwrapped(optimizer: torch.optim.Optimizer | OptimizerWrapper) -> torch.optim.Optimizer:
    while not isinstance(optimizer, torch.optim.Optimizer):
        if not hasattr(optimizer, "optimizer"):
            raise UserError(f"optimizer: got {type(optimizer).__name__}, expected Adam or AdamW, or a wrapper of it")
        optimizer = optimizer.optimizer
    return optimizer


def _adam_scale(state: Mapping[str, Any], group: Mapping[str, Any], kind: str) -> Tensor:
    """Return 1 / (sqrt(v_hat) + eps)."""
    if "exp_avg_sq" not in state:
        raise _no_moments(kind)
    _, beta2 = group["betas"]
    # With amsgrad, Adam divides its step by the running maximum.
    second: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - beta2 ** float(state["step"])
    # In place from the second operation on: the moments of an embedding are a large part of the model's.
    return (second / correction).sqrt_().add_(group["eps"]).reciprocal_()
