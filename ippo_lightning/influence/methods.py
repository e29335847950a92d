"""Scores along one direction by all methods but hooks: forward mode, finite differences, one backward per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.finite_difference import difference_scores
from ippo_lightning.influence.forward import forward_derivative, refuse_what_drops_tangents, verify_forward
from ippo_lightning.influence.options import Method, check_sharding
from ippo_lightning.influence.per_episode import per_episode_norms, per_episode_scores
from ippo_lightning.influence.refusals import checked_losses, require_finite_scores

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


def require_method(model: nn.Module, *, method: Method) -> None:
    """Refuse a method that would be wrong for a model, before anything is computed.

    Args:
        model: any module.
        method: one of `Method`.

    Raises:
        UserError: the model is sharded, or has a part that the method does not support.
    """
    check_sharding(model, method=method)
    if method == "forward":
        refuse_what_drops_tangents(model)


def scores_without_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: Sequence[Block],
    *,
    method: Method,
    known_losses: Callable[[Batch], Tensor] | None,
    checksum_batches: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Score all batches along one direction.

    Args:
        model: as in `influence_scores`, with dropout off.
        episode_losses: as in `influence_scores`.
        batches: as in `influence_scores`.
        blocks: the direction's blocks.
        method: any but "hooks".
        known_losses: as in `influence_scores`.
        checksum_batches: number of batches that "forward" checks; None for all.
        dtype: dtype of the scores.

    Returns:
        Shape [rows] over all batches.

    Raises:
        NonFiniteScoreError: some scores are NaN or infinite.
    """
    if method == "per_episode":
        # A generator: in a list, the graphs of all batches would be in memory at once.
        losses = (checked_losses(episode_losses(model, batch)) for batch in batches)
        parts = [per_episode_scores(row, blocks, dtype=dtype) for row in losses]
    else:
        parts = derivatives(
            model,
            episode_losses,
            batches,
            blocks,
            method=method,
            known_losses=known_losses,
            checksum_batches=checksum_batches,
            dtype=dtype,
            axes=("rows",),
        )
    # After all passes: a rank of a sharded model that raises between two passes would leave the other ranks waiting.
    first = 0
    for part in parts:
        require_finite_scores(part, first=first)
        first += len(part)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def derivatives(
    model: Model,
    losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: Sequence[Block],
    *,
    method: str,
    known_losses: Callable[[Batch], Tensor] | None,
    checksum_batches: int | None,
    dtype: torch.dtype,
    axes: tuple[str, ...],
) -> list[Tensor]:
    """Differentiate losses of any shape along one direction, without a backward.

    Args:
        model: as in `influence_scores`, with dropout off.
        losses: called with the model and a batch; returns a tensor with the axes `axes`.
        batches: as in `influence_scores`.
        blocks: the direction's blocks.
        method: "forward" or "finite_difference".
        known_losses: the losses at the current parameters, in the shape that `losses` returns.
        checksum_batches: number of batches that "forward" checks; None for all.
        dtype: dtype of the derivatives.
        axes: names of the axes that `losses` returns.

    Returns:
        One tensor per batch, in the shape that `losses` returns.
    """

    def function(of: Model, batch: Batch) -> Tensor:
        return checked_losses(losses(of, batch), axes=axes)

    if method == "finite_difference":
        # Before the parameters move: these are the losses at the current ones.
        known = None if known_losses is None else [known_losses(batch) for batch in batches]
        return difference_scores(model, function, batches, blocks, known=known, step=None, dtype=dtype)
    parts = []
    for number, batch in enumerate(batches):
        _, derivative = forward_derivative(model, function, batch, blocks, dtype=dtype)
        if checksum_batches is None or number < checksum_batches:
            verify_forward(model, function, batch, blocks, derivative)
        parts.append(derivative)
    return parts


def norms_without_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: Sequence[Block],
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Return the norm of each row's gradient over the direction's parameters, by one backward per row.

    Args:
        model: as in `influence_scores`, with dropout off.
        episode_losses: as in `influence_scores`.
        batches: as in `influence_scores`.
        blocks: the parameters that count.
        dtype: dtype of the norms.

    Returns:
        Shape [rows] over all batches.
    """
    parts = [per_episode_norms(episode_losses(model, batch), blocks, dtype=dtype) for batch in batches]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)
