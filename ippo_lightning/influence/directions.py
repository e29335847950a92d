"""What can be done to a direction: choose its parameters, scale it as Adam would, average and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import (
    full_tensor,
    inner_product,
    is_sharded,
    local,
    mean_over_ranks,
    sharded_like,
)
from ippo_lightning.errors import UserError
from ippo_lightning.influence.model_state import averaged_gradients, trainable_parameters, undisturbed

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


def target_gradient(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    *,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Average the gradient of a loss over batches, at the model's current parameters.

    V = sum_b w_b * grad loss(batch_b) / sum_b w_b
    Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597, the validation gradient, where the loss is the mean negative
    log-likelihood of held-out demonstrations.

    The model is evaluated with dropout off; it, its `.grad` and torch's random state are as before afterwards, also
    after an error. Hand in the bare module, not a DistributedDataParallel wrapper. Where ranks hold parts of the
    parameters (FSDP2), the batches of all ranks count, and each rank must have as many.

    Args:
        model: any module; its trainable parameters are differentiated, frozen ones left out.
        loss: called with the model and a batch; returns a 0-dim loss with its graph.
        batches: at least one.
        weights: one number a batch, >= 0, not all zero; the number of demonstrations in each, for instance. None
            counts every batch alike.

    Returns:
        Name in `model.named_parameters()` to gradient, the parameter's shape, float32 (float64 for float64
        parameters), divided over ranks as the parameter is. Zero where the loss does not depend on the parameter.

    Raises:
        UserError: no trainable parameter, no batch, wrong weights, a loss that is no 0-dim tensor or depends on no
            trainable parameter, or a gradient with NaN or infinity, whose parameter is named.
    """
    return target_gradient_groups(model, loss, batches, num_groups=1, weights=weights).directions[0]


class TargetGroups(NamedTuple):
    """The target gradient of each group of batches."""

    directions: list[dict[str, Tensor]]
    """One a group, as `target_gradient` returns it."""
    weights: list[float]
    """Sum of the weights of each group's batches, with which the groups average to the gradient of all."""


def target_gradient_groups(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    *,
    num_groups: int,
    weights: Sequence[float] | None = None,
) -> TargetGroups:
    """Average the gradient of a loss over groups of batches: halves, for one, to see how far they agree.

    Batch b belongs to group b modulo `num_groups`.

    Args:
        model: as in `target_gradient`.
        loss: as in `target_gradient`.
        batches: at least `num_groups`.
        num_groups: at least 1.
        weights: as in `target_gradient`, not all zero in any group.

    Returns:
        A gradient and a weight for each group.

    Raises:
        UserError: as in `target_gradient`; fewer batches than groups.
    """
    if num_groups < 1:
        raise UserError(f"num_groups: got {num_groups}, expected an integer >= 1")
    parameters = trainable_parameters(model)
    group_weights = [0.0] * num_groups
    together = is_sharded(model)
    with undisturbed(model):
        groups = [
            {name: torch.zeros_like(p, dtype=_sum_dtype(p), requires_grad=False) for name, p in parameters.items()}
            for _ in range(num_groups)
        ]
        for number, (batch, weight) in enumerate(_weighted(batches, weights)):
            value = _checked_loss(loss(model, batch))
            totals = groups[number % num_groups]
            # a backward that averages over ranks wants the weight before it; else it is more exact after it
            found = averaged_gradients(value * weight if together else value, list(parameters.values()))
            for total, gradient in zip(totals.values(), found, strict=True):
                if gradient is not None:
                    total.add_(gradient.to(dtype=total.dtype), alpha=1.0 if together else weight)
            group_weights[number % num_groups] += weight
        if together:
            group_weights = mean_over_ranks(group_weights, device=next(iter(parameters.values())).device)
    for totals, group_weight in zip(groups, group_weights, strict=True):
        if group_weight <= 0.0:
            each = "at least one batch" if num_groups == 1 else f"at least one batch for each of {num_groups} groups"
            raise UserError(f"batches: the weights sum to {group_weight:g} over all batches; expected {each}")
        _require_finite(totals)
        for total in totals.values():
            total.div_(group_weight)
    return TargetGroups(groups, group_weights)


def _sum_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _weighted(batches: Iterable[Batch], weights: Sequence[float] | None) -> Iterator[tuple[Batch, float]]:
    """Pair every batch with its weight; complain about a weight too many or too few."""
    count = 0
    for batch in batches:
        if weights is not None and count >= len(weights):
            raise UserError(f"weights: got {len(weights)} for more batches; expected one a batch")
        weight = 1.0 if weights is None else float(weights[count])
        if not (math.isfinite(weight) and weight >= 0.0):
            raise UserError(f"weights: got {weight} for batch {count}, expected a finite number >= 0")
        count += 1
        yield batch, weight
    if weights is not None and count != len(weights):
        raise UserError(f"weights: got {len(weights)} for {count} batches; expected one a batch")


def _checked_loss(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss: returned {received}, expected a 0-dim tensor")
    if not loss.requires_grad:
        raise UserError("loss: returned a tensor without a graph; expected it to depend on a trainable parameter")
    return loss


def _require_finite(totals: Mapping[str, Tensor]) -> None:
    for name, gradient in totals.items():
        if not bool(torch.isfinite(local(gradient)).all()):
            raise UserError(f"loss: its gradient for '{name}' holds NaN or infinity; expected a finite loss and model")


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
