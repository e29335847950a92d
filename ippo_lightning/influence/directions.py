"""Directions that episodes are scored against: take one as a target gradient, select, scale, average and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, TypeVar

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

Direction = Mapping[str, Tensor]
"""Parameter name to block: a tensor of the parameter's shape, sharded if the parameter is."""


class OptimizerWrapper(Protocol):
    """An object around an optimizer, such as those of Lightning and Fabric."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | OptimizerWrapper:
        """The wrapped optimizer."""


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

    The model is evaluated with dropout off. Afterwards the model, its `.grad` and torch's random state are as before,
    also after an error. Pass the bare module, not a DistributedDataParallel wrapper. If the model is sharded (FSDP2),
    the result averages over the batches of all ranks, and all ranks need the same number of batches.

    Args:
        model: any module; the result has the gradients of its trainable parameters.
        loss: called with the model and a batch; returns a 0-dim loss with its graph.
        batches: at least one.
        weights: one number per batch, >= 0, not all zero; for example the number of demonstrations in each batch. None
            weights all batches equally.

    Returns:
        Name in `model.named_parameters()` to gradient, in the parameter's shape, float32 (float64 for float64
        parameters), sharded if the parameter is. Zero if the loss does not depend on the parameter.

    Raises:
        UserError: no trainable parameter, no batch, wrong weights, a loss that is no 0-dim tensor or depends on no
            trainable parameter, or a gradient with NaN or infinity (the message names the parameter).
    """
    return target_gradient_groups(model, loss, batches, num_groups=1, weights=weights).directions[0]


class TargetGroups(NamedTuple):
    """The target gradient of each group of batches."""

    directions: list[dict[str, Tensor]]
    """One gradient per group, as `target_gradient` returns it."""
    weights: list[float]
    """Sum of the weights of each group's batches; the mean of the groups with these weights is the full gradient."""


def target_gradient_groups(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    *,
    num_groups: int,
    weights: Sequence[float] | None = None,
    split: Callable[[Batch], Sequence[tuple[Batch, float]]] | None = None,
) -> TargetGroups:
    """Average the gradient of a loss over groups of batches, for example over halves to measure their agreement.

    Batch b belongs to group b modulo `num_groups`.

    Args:
        model: as in `target_gradient`.
        loss: as in `target_gradient`.
        batches: at least `num_groups`.
        num_groups: at least 1.
        weights: as in `target_gradient`, not all zero in any group.
        split: called with a batch for which memory ran out; returns parts and the fraction of each in the batch's
            loss. None, or a sharded model, raises the error.

    Returns:
        One gradient and one weight per group.

    Raises:
        UserError: as in `target_gradient`; also fewer batches than groups.
    """
    if num_groups < 1:
        raise UserError(f"num_groups: got {num_groups}, expected an integer >= 1")
    parameters = trainable_parameters(model)
    group_weights = [0.0] * num_groups
    together = is_sharded(model)
    with undisturbed(model):
        # Inside the block: a tensor that is made in a caller's inference mode cannot be changed in place outside of it.
        # `zeros_like` keeps the sharding.
        groups = [
            {name: torch.zeros_like(p, dtype=_sum_dtype(p), requires_grad=False) for name, p in parameters.items()}
            for _ in range(num_groups)
        ]
        for number, (batch, weight) in enumerate(_weighted(batches, weights)):
            # Batches are dealt out in turn: if similar examples are neighbours, each group still gets its part of them.
            totals = groups[number % num_groups]
            # The backward of a sharded model averages over ranks, so each rank's weight must already be in the loss.
            # Otherwise the weight is applied in the sum's dtype, which rounds less.
            inside, outside = (weight, 1.0) if together else (None, weight)
            pieces = _fitting_gradients(
                model, loss, batch, list(parameters.values()), factor=inside, split=None if together else split
            )
            for found, fraction in pieces:
                for total, gradient in zip(totals.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient.to(dtype=total.dtype), alpha=outside * fraction)
            group_weights[number % num_groups] += weight
        if together:
            # The backward has divided by the number of ranks, so the weights that divide its sum are means, too.
            group_weights = mean_over_ranks(group_weights, device=next(iter(parameters.values())).device)
    # After the mean over ranks: all ranks of a sharded model then raise together, or none does.
    for totals, group_weight in zip(groups, group_weights, strict=True):
        if group_weight <= 0.0:
            each = "at least one batch" if num_groups == 1 else f"at least one batch for each of {num_groups} groups"
            raise UserError(f"batches: the weights sum to {group_weight:g} over all batches; expected {each}")
        _require_finite(totals)
        for total in totals.values():
            total.div_(group_weight)
    return TargetGroups(groups, group_weights)


def _fitting_gradients(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    *,
    factor: float | None,
    split: Callable[[Batch], Sequence[tuple[Batch, float]]] | None,
) -> Iterator[tuple[Sequence[Tensor | None], float]]:
    """Yield the gradient of a batch, or of its parts if memory runs out, and the fraction of each in the batch."""
    found = None
    try:
        value = _checked_loss(loss(model, batch))
        found = averaged_gradients(value if factor is None else value * factor, parameters)
    except torch.OutOfMemoryError:
        if split is None:
            raise
    if found is not None:
        yield found, 1.0
        return
    assert split is not None  # outside of the except block, whose traceback keeps the failed pass alive
    for part, fraction in split(batch):
        for gradient, inner in _fitting_gradients(model, loss, part, parameters, factor=factor, split=split):
            yield gradient, fraction * inner


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
    direction: Direction, *, model: nn.Module, optimizer: torch.optim.Optimizer | OptimizerWrapper
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

    Returns:
        The scaled direction. Before the first optimizer step the direction is returned unchanged. A parameter that has
        no state while others have (it never received a gradient) is scaled by the median of the others' median scales.

    Raises:
        UserError: no optimizer, or one without Adam's second moments.
    """
    adam = _unwrapped(optimizer)
    parameters = trainable_parameters(model)
    groups = {id(parameter): group for group in adam.param_groups for parameter in group["params"]}
    scales: dict[str, Tensor] = {}
    for name in direction:
        # `get`, because the state is a defaultdict: an index would add an entry to the optimizer.
        state = adam.state.get(parameters[name], {}) if name in parameters else {}
        if state:
            scales[name] = _adam_scale(state, groups[id(parameters[name])], type(adam).__name__)
    if not scales:
        return dict(direction)
    usual = 1.0
    if len(scales) < len(direction):
        # Scale 1 would be wrong by orders of magnitude: 1 / (sqrt(v_hat) + eps) is often 1e4 and more.
        # Medians and not means: an entry with v_hat = 0 has the scale 1 / eps, which would outweigh all others.
        usual = float(torch.stack([full_tensor(scale).double().median().cpu() for scale in scales.values()]).median())
    return {
        # The optimizer's state is sharded like the parameter, but a small direction may be full.
        name: block * (sharded_like(scales[name], block).to(dtype=block.dtype) if name in scales else usual)
        for name, block in direction.items()
    }


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
    return {
        name: sum(
            (entry[name] * (factor / total) for entry, factor in zip(directions, factors, strict=True)), 0 * block
        )
        for name, block in directions[0].items()
    }


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


def _sum_dtype(parameter: Tensor) -> torch.dtype:
    # Sums of many half-precision gradients stop growing after a few hundred terms.
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _weighted(batches: Iterable[Batch], weights: Sequence[float] | None) -> Iterator[tuple[Batch, float]]:
    """Pair every batch with its weight; refuse a wrong number of weights."""
    # Counted on the way: the batches may come from a generator, whose length is unknown.
    count = 0
    for batch in batches:
        if weights is not None and count >= len(weights):
            raise UserError(f"weights: got {len(weights)} for more batches; expected one per batch")
        weight = 1.0 if weights is None else float(weights[count])
        if not (math.isfinite(weight) and weight >= 0.0):
            raise UserError(f"weights: got {weight} for batch {count}, expected a finite number >= 0")
        count += 1
        yield batch, weight
    if weights is not None and count != len(weights):
        raise UserError(f"weights: got {len(weights)} for {count} batches; expected one per batch")


def _checked_loss(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss: returned {received}, expected a 0-dim tensor")
    if not loss.requires_grad:
        raise UserError("loss: returned a tensor without a graph; expected it to depend on a trainable parameter")
    return loss


def _require_finite(direction: Direction) -> None:
    for name, gradient in direction.items():
        if not bool(torch.isfinite(local(gradient)).all()):
            raise UserError(
                f"loss: its gradient for '{name}' contains NaN or infinity; expected a finite loss and model"
            )


def _unwrapped(optimizer: torch.optim.Optimizer | OptimizerWrapper) -> torch.optim.Optimizer:
    while not isinstance(optimizer, torch.optim.Optimizer):
        if not hasattr(optimizer, "optimizer"):
            raise UserError(f"optimizer: got {type(optimizer).__name__}, expected Adam or AdamW, or a wrapper of it")
        optimizer = optimizer.optimizer
    return optimizer


def _adam_scale(state: Mapping[str, Any], group: Mapping[str, Any], kind: str) -> Tensor:
    """Return 1 / (sqrt(v_hat) + eps)."""
    if "exp_avg_sq" not in state:
        raise UserError(f"optimizer: {kind} keeps no second moments (exp_avg_sq); expected Adam or AdamW")
    _, beta2 = group["betas"]
    # With amsgrad, Adam divides its step by the running maximum.
    second: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - beta2 ** float(state["step"])
    return 1 / ((second / correction).sqrt() + group["eps"])
