"""The definition, followed literally: one backward an episode. Slow, works for every parameter, and is the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.surroundings import gradients


def per_episode_scores(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Take each episode's gradient in turn and its inner product with the direction.

    s_i = sum over parameters of <d loss_i / d parameter, V>

    Args:
        losses: one loss an episode, shape [episodes], with a graph.
        blocks: parameters and their blocks of the direction.
        dtype: float32 or float64, of the sums.

    Returns:
        Scores, shape [episodes].
    """
    scores = [
        directional_derivative(losses, torch.nn.functional.one_hot(row, len(losses)).to(losses), blocks, dtype=dtype)[0]
        for row in torch.arange(len(losses), device=losses.device)
    ]
    return torch.stack(scores) if scores else torch.zeros(0, dtype=dtype, device=losses.device)


def directional_derivative(
    losses: Tensor, weights: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Differentiate a weighted sum of the losses and contract it with the direction, by plain autograd.

    Args:
        losses: one loss an episode, shape [episodes]; its graph is kept.
        weights: shape [episodes], dtype of `losses`.
        blocks: parameters and their blocks of the direction.
        dtype: float32 or float64, of the sums.

    Returns:
        <grad of sum of weights * losses, direction>, and the root of the sum of the squared products, which measures
        how far rounding alone can move the first; both 0-dim.
    """
    total = torch.zeros((), dtype=dtype, device=losses.device)
    squares = torch.zeros((), dtype=dtype, device=losses.device)
    if not losses.requires_grad or not blocks:
        return total, squares
    parameters = [block.parameter for block in blocks]
    for block, gradient in zip(blocks, gradients(losses, parameters, weights, keep_graph=True), strict=True):
        if gradient is not None:
            product = gradient.to(dtype=dtype) * block.direction
            total = total + product.sum().to(device=total.device)
            squares = squares + product.square().sum().to(device=total.device)
    return total, squares.sqrt()
