"""The definition of a score, computed literally: one backward per row. Slow, but correct for every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.collectives import all_reduce_sum, world_size
from ippo_lightning.distributed.dtensor import local, sharded_like
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.model_state import gradients


def per_episode_scores(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Return the inner product of each row's gradient with the direction.

    s_i = sum over parameters of <d loss_i / d parameter, V>

    Args:
        losses: one loss per row, shape [rows], with a graph.
        blocks: the direction's blocks.
        dtype: dtype of the sums, float32 or float64.

    Returns:
        Scores, shape [rows].
    """
    scores = [directional_derivative(losses, row, blocks, dtype=dtype)[0] for row in _one_at_a_time(losses)]
    return torch.stack(scores) if scores else torch.zeros(0, dtype=dtype, device=losses.device)


def per_episode_norms(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Return the norm of each row's gradient over the direction's parameters.

    Args:
        losses: one loss per row, shape [rows], with a graph.
        blocks: the parameters that count; their directions are not used.
        dtype: dtype of the sums, float32 or float64.

    Returns:
        Norms, shape [rows].
    """
    norms = torch.zeros(len(losses), dtype=dtype, device=losses.device)
    if not losses.requires_grad or not blocks:
        return norms
    parameters = [block.parameter for block in blocks]
    for number, row in enumerate(_one_at_a_time(losses)):
        found = gradients(losses, parameters, row, keep_graph=True)
        norms[number] = sum(float(part.to(dtype=dtype).square().sum()) for part in found if part is not None) ** 0.5
    return norms


def directional_derivative(
    losses: Tensor, weights: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Differentiate a weighted sum of the losses by plain autograd and contract the gradient with the direction.

    Args:
        losses: any shape; its graph is kept.
        weights: shape and dtype of `losses`.
        blocks: the direction's blocks.
        dtype: dtype of the sums, float32 or float64.

    Returns:
        The result of `contracted` for the gradient of sum of weights * losses.
    """
    like = torch.zeros((), dtype=dtype, device=losses.device)
    if not losses.requires_grad or not blocks:
        return like, like
    found = gradients(losses, [block.parameter for block in blocks], weights, keep_graph=True)
    return contracted(dict(zip((block.name for block in blocks), found, strict=True)), blocks, like=like)


def contracted(found: Mapping[str, Tensor | None], blocks: Sequence[Block], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner product of a gradient with a direction, and the size of its rounding error.

    Args:
        found: parameter name to gradient, None for zero; of a sharded model, that of the mean over ranks. A gradient
            that is not sharded is that of this rank's losses, and its products are averaged over ranks.
        blocks: the direction's blocks.
        like: a tensor with the dtype and the device of the result.

    Returns:
        <gradient, direction>, and the root of the sum of the squared products: rounding moves the first by about this
        number times the rounding unit. Both are 0-dim.
    """
    sharded, full = like.new_zeros(2), like.new_zeros(2)
    for block in blocks:
        gradient = found[block.name]
        if gradient is not None:
            # A full direction is cut like the gradient, so that the sum over ranks counts each product once.
            along = local(sharded_like(block.direction, gradient))
            product = local(gradient).to(dtype=like.dtype) * along.to(dtype=like.dtype)
            # Squares of small products are denormal in float32, and arithmetic with these is many times slower.
            square = torch.linalg.vector_norm(product, dtype=torch.float64).square().to(product)
            sums = sharded if isinstance(gradient, DTensor) else full
            sums += torch.stack([product.sum(), square]).to(device=like.device)
    if any(isinstance(block.parameter, DTensor) for block in blocks):
        # Each rank has all of a full gradient, of its own episodes: their mean, where the sum is of the shards.
        sharded = all_reduce_sum(sharded + full / world_size())
        full = torch.zeros_like(full)
    product_sum, squares = sharded + full
    return product_sum, squares.sqrt()


def _one_at_a_time(losses: Tensor) -> Iterator[Tensor]:
    """Yield for each row the weights that select its loss."""
    for row in torch.arange(len(losses), device=losses.device):
        yield torch.nn.functional.one_hot(row, len(losses)).to(losses)
