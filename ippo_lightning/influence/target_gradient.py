"""Take the gradient of a target: the direction that episodes are scored against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.collectives import all_reduce_sum, world_size
from ippo_lightning.distributed.dtensor import is_sharded, local, mean_over_ranks
from ippo_lightning.errors import UserError
from ippo_lightning.influence.directions import Direction
from ippo_lightning.influence.model_state import averaged_gradients, trainable_parameters, undisturbed
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory

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
    group_of: Sequence[int] | None = None,
    split: Callable[[Batch], Sequence[tuple[Batch, float]]] | None = None,
) -> TargetGroups:
    """Average the gradient of a loss over groups of batches, for example over halves to measure their agreement.

    Without `group_of`, batch b belongs to group b modulo `num_groups`.

    Args:
        model: as in `target_gradient`.
        loss: as in `target_gradient`.
        batches: at least `num_groups`.
        num_groups: at least 1.
        weights: as in `target_gradient`, not all zero in any group.
        group_of: the group of each batch, counted from 0.
        split: called with a batch for which memory ran out; returns parts and the fraction of each in the batch's
            loss. For a sharded model it must raise, because the ranks make their passes together. None raises the
            error of the pass.

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
            group = number % num_groups if group_of is None else group_of[number]
            totals = groups[group]
            # The backward of a sharded model averages over ranks, so each rank's weight must already be in the loss.
            # Otherwise the weight is applied in the sum's dtype, which rounds less.
            inside, outside = (weight, 1.0) if together else (None, weight)
            pieces = _fitting_gradients(model, loss, batch, list(parameters.values()), factor=inside, split=split)
            for found, fraction in pieces:
                for total, gradient in zip(totals.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient.to(dtype=total.dtype), alpha=outside * fraction)
                # Otherwise these names keep the gradient in memory until the next pass has made its own.
                del found, gradient
            group_weights[group] += weight
        if together:
            _average_full(groups)
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


def _average_full(groups: Sequence[Direction]) -> None:
    """Average over ranks what is not sharded; the backward has averaged the rest already."""
    for totals in groups:
        for total in totals.values():
            if not isinstance(total, DTensor):
                total.copy_(all_reduce_sum(total) / world_size())


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
    except MEMORY_ERRORS as error:
        if split is None or not is_out_of_memory(error):
            raise
    if found is not None:
        yield found, 1.0
        return
    assert split is not None  # outside of the except block, whose traceback keeps the failed pass alive
    for part, fraction in split(batch):
        for gradient, inner in _fitting_gradients(model, loss, part, parameters, factor=factor, split=split):
            yield gradient, fraction * inner
            del gradient  # before the next part's pass, see above


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
