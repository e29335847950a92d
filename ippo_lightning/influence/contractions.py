"""One number an episode from a module's input, its output gradient and a direction's block.

Legend: inputs `[episodes, ..., in]`, output_gradient `[episodes, ..., out]`; the axes between (tokens, for one) are
summed. Gradients of weights are never formed. An output gradient of exactly zero contributes exactly zero, whatever
stands beside it, so a NaN in padding stays in padding.

Source: Goodfellow 2015, arXiv 1510.01799 (per-example gradients from inputs and output gradients); here contracted with
a fixed direction instead of with themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_term(*, inputs: Tensor, output_gradient: Tensor, block: Tensor) -> Tensor:
    """Contract the gradient of a weight stored as `[out, in]`: sum over tokens of g^T V a.

    Multiplies on the narrower side first, so that no more than min(out, in) numbers a token are kept.

    Args:
        inputs: the module's input a, shape [episodes, ..., in], float.
        output_gradient: gradient g at the module's output, shape [episodes, ..., out], float.
        block: the direction's block V, shape [out, in], float32 or float64.

    Returns:
        One term an episode, shape [episodes], in the block's dtype.
    """
    dtype = _matmul_dtype(output_gradient=output_gradient, block=block)
    gradient, values, matrix = output_gradient.to(dtype=dtype), inputs.to(dtype=dtype), block.to(dtype=dtype)
    out_features, in_features = block.shape
    if out_features <= in_features:
        return _row_dot(gradient=gradient, other=values @ matrix.T, like=block)
    return _row_dot(gradient=gradient @ matrix, other=values, like=block)


def bias_term(*, output_gradient: Tensor, block: Tensor) -> Tensor:
    """Contract the gradient of a bias: sum over tokens of g . V.

    Args:
        output_gradient: shape [episodes, ..., *features], float.
        block: shape [*features], float32 or float64.

    Returns:
        One term an episode, shape [episodes], in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=block, like=block)


def embedding_term(*, ids: Tensor, output_gradient: Tensor, block: Tensor, padding_index: int | None) -> Tensor:
    """Contract the gradient of an embedding table: sum over tokens of g . V[id].

    Args:
        ids: looked-up rows, shape [episodes, ...], int64.
        output_gradient: shape [episodes, ..., features], float.
        block: shape [vocab, features], float32 or float64.
        padding_index: the row that torch gives no gradient, where the table has one.

    Returns:
        One term an episode, shape [episodes], in the block's dtype.
    """
    gradient = output_gradient
    if padding_index is not None:
        gradient = gradient.masked_fill((ids == padding_index).unsqueeze(-1), 0.0)
    return _row_dot(gradient=gradient, other=torch.nn.functional.embedding(ids, block), like=block)


def scale_term(*, normalised: Tensor, output_gradient: Tensor, block: Tensor) -> Tensor:
    """Contract the gradient of a norm's scale: sum over tokens of (g * xhat) . V.

    Args:
        normalised: the norm's input after centring and scaling, before its weight, shape [episodes, ..., *features].
        output_gradient: shape [episodes, ..., *features], float.
        block: shape [*features], float32 or float64.

    Returns:
        One term an episode, shape [episodes], in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=normalised.to(dtype=block.dtype) * block, like=block)


def layer_normalised(*, inputs: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Centre and scale to unit variance, as LayerNorm does before its weight and bias.

    xhat = (x - mean x) / sqrt(var x + eps)

    Args:
        inputs: shape [episodes, ..., *features], float.
        dims: the axes of the features.
        eps: added to the variance.

    Returns:
        xhat, the shape of `inputs`, at least float32.
    """
    values = inputs.to(dtype=torch.promote_types(inputs.dtype, torch.float32))
    centred = values - values.mean(dim=dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=dims, keepdim=True) + eps)


def rms_normalised(*, inputs: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Scale to unit root mean square, as RMSNorm does before its weight, in the dtype of the inputs.

    xhat = x / sqrt(mean x^2 + eps)
    Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4; eps as every implementation has it.

    Args:
        inputs: shape [episodes, ..., *features], float.
        dims: the axes of the features.
        eps: added to the mean square.

    Returns:
        xhat, shape and dtype of `inputs`.
    """
    return inputs * torch.rsqrt(inputs.square().mean(dim=dims, keepdim=True) + eps)


def _matmul_dtype(*, output_gradient: Tensor, block: Tensor) -> torch.dtype:
    # bfloat16 has float32's range, so the fast matmul is safe; float16 would flush small gradients to zero.
    if output_gradient.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(output_gradient.dtype, block.dtype)


def _row_dot(*, gradient: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """Multiply, leave out what has no gradient, and sum everything but the first axis in the dtype of `like`."""
    product = gradient.to(dtype=like.dtype) * other.to(dtype=like.dtype)
    return product.masked_fill(gradient == 0, 0.0).flatten(start_dim=1).sum(dim=1)
