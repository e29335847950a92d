"""The definition, followed literally: one backward an episode. Slow, works for every parameter, and is the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.distributed.dtensor import local, sharded_like
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.model_state import gradients


def per_episode_scores(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Take each episode's gradient in turn and its inner product with the direction.

    s_i = sum over parameters of <d loss_i / d parameter, V>

    Args:
        losses: one loss an episode, shape [rows], with a graph.
        blocks: parameters and their blocks of the direction.
        dtype: float32 or float64, of the sums.

    Returns:
        Scores, shape [rows].
    """
    scores = [directional_derivative(losses, row, blocks, dtype=dtype)[0] for row in _one_at_a_time(losses)]
    return torch.stack(scores) if scores else torch.zeros(0, dtype=dtype, device=losses.device)


def per_episode_norms(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Take each episode's gradient in turn and its length over the direction's parameters.

    Args:
        losses: one loss an episode, shape [rows], with a graph.
        blocks: parameters that count; their directions do not.
        dtype: float32 or float64, of the sums.

    Returns:
        Lengths, shape [rows].
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
    """Differentiate a weighted sum of the losses and contract it with the direction, by plain autograd.

    Args:
        losses: any shape; its graph is kept.
        weights: shape and dtype of `losses`.
        blocks: parameters and their blocks of the direction.
        dtype: float32 or float64, of the sums.

    Returns:
        What `contracted` returns for the gradient of sum of weights * losses.
    """
    like = torch.zeros((), dtype=dtype, device=losses.device)
    if not losses.requires_grad or not blocks:
        return like, like
    found = gradients(losses, [block.parameter for block in blocks], weights, keep_graph=True)
    return contracted(dict(zip((block.name for block in blocks), found, strict=True)), blocks, like=like)


def contracted(found: Mapping[str, Tensor | None], blocks: Sequence[Block], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Take the inner product of a gradient with a direction.

    Args:
        found: parameter name to gradient, None for zero.
        blocks: parameters and their blocks of the direction.
        like: has the dtype and the device of the result.

    Returns:
        <gradient, direction>, and the root of the sum of the squared products, which measures how far rounding alone
        can move the first; both 0-dim.
    """
    sums = like.new_zeros(2)
    for block in blocks:
        gradient = found[block.name]
        if gradient is not None:
            along = local(sharded_like(block.direction, gradient))
            product = local(gradient).to(dtype=like.dtype) * along.to(dtype=like.dtype)
            # squares of small products are denormal in float32, which is many times slower
            square = torch.linalg.vector_norm(product, dtype=torch.float64).square().to(product)
            sums += torch.stack([product.sum(), square]).to(device=like.device)
    if any(isinstance(gradient, DTensor) for gradient in found.values()):
        sums = all_reduce_sum(sums)
    return sums[0], sums[1].sqrt()


def _one_at_a_time(losses: Tensor) -> Iterator[Tensor]:
    for row in torch.arange(len(losses), device=losses.device):
        yield torch.nn.functional.one_hot(row, len(losses)).to(losses)
