"""The gradient of a target loss, averaged over batches: the direction that episodes are scored against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import is_sharded, local, mean_over_ranks
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
