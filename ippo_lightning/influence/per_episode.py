"""The definition, followed literally: one backward an episode. Slow, works for every parameter, and is the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    scores = [directional_derivative(losses, row, blocks, dtype=dtype)[0] for row in _one_at_a_time(losses)]
    return torch.stack(scores) if scores else torch.zeros(0, dtype=dtype, device=losses.device)


def per_episode_norms(losses: Tensor, blocks: Sequence[Block], *, dtype: torch.dtype) -> Tensor:
    """Take each episode's gradient in turn and its length over the direction's parameters.

    Args:
        losses: one loss an episode, shape [episodes], with a graph.
        blocks: parameters that count; their directions do not.
        dtype: float32 or float64, of the sums.

    Returns:
        Lengths, shape [episodes].
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
        losses: one loss an episode, shape [episodes]; its graph is kept.
        weights: shape [episodes], dtype of `losses`.
        blocks: parameters and their blocks of the direction.
        dtype: float32 or float64, of the sums.

    Returns:
        <grad of sum of weights * losses, direction>, and the root of the sum of the squared products, which measures
        how far rounding alone can move the first; both 0-dim.
    """
    return directional_derivatives(losses, weights, [blocks], dtype=dtype)[0]


def directional_derivatives(
    losses: Tensor, weights: Tensor, directions: Sequence[Sequence[Block]], *, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Do for several directions what `directional_derivative` does for one, with a single backward.

    Args:
        losses: see there.
        weights: see there.
        directions: for each its blocks.
        dtype: see there.

    Returns:
        For each direction what `directional_derivative` returns.
    """
    zero = torch.zeros((), dtype=dtype, device=losses.device)
    parameters = {block.name: block.parameter for blocks in directions for block in blocks}
    if not losses.requires_grad or not parameters:
        return [(zero, zero)] * len(directions)
    found = gradients(losses, list(parameters.values()), weights, keep_graph=True)
    by_name = dict(zip(parameters, found, strict=True))
    results = []
    for blocks in directions:
        total, squares = zero, zero
        for block in blocks:
            gradient = by_name[block.name]
            if gradient is not None:
                product = gradient.to(dtype=dtype) * block.direction
                total = total + product.sum().to(device=total.device)
                squares = squares + product.square().sum().to(device=total.device)
        results.append((total, squares.sqrt()))
    return results


def _one_at_a_time(losses: Tensor) -> Iterator[Tensor]:
    for row in torch.arange(len(losses), device=losses.device):
        yield torch.nn.functional.one_hot(row, len(losses)).to(losses)
