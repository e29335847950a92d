"""One number an episode from a module's input, its output gradient and a direction's block.

Legend: inputs `[rows, ..., in]`, output_gradient `[rows, ..., out]`; the axes between (tokens, for one) are
summed (see `Rows`). Gradients of weights are never formed. An output gradient of exactly zero contributes exactly zero,
whatever stands beside it, so a NaN in padding stays in padding.

Source: Goodfellow 2015, arXiv 1510.01799 (per-example gradients from inputs and output gradients); here contracted with
a fixed direction instead of with themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """How products are summed up to one number an episode."""

    keep: int = 1
    """Leading axes that are not summed: 1, or 2 where a row holds the tokens of several episodes."""
    careful: bool = True
    """Whether what has no gradient is left out; without it a NaN there shows in the sum, several times faster."""


CAREFUL = Rows()
_THIN = 64
"""Ranks of adapters stay below it, widths of layers above."""


def linear_term(*, inputs: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a weight stored as `[out, in]`: sum over tokens of g^T V a.

    Multiplies on the narrower side first, so that no more than min(out, in) numbers a token are kept.

    Args:
        inputs: the module's input a, shape [rows, ..., in], float.
        output_gradient: gradient g at the module's output, shape [rows, ..., out], float.
        block: the direction's block V, shape [out, in], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term an episode, shape [rows] (or [rows, tokens]), in the block's dtype.
    """
    dtype = _matmul_dtype(output_gradient=output_gradient, block=block)
    gradient, values, matrix = output_gradient.to(dtype=dtype), inputs.to(dtype=dtype), block.to(dtype=dtype)
    out_features, in_features = block.shape
    if out_features <= in_features:
        return _row_dot(gradient=gradient, other=values @ matrix.T, like=block, rows=rows, may_overwrite=True)
    if rows.careful:
        return _row_dot(gradient=gradient @ matrix, other=values, like=block, rows=rows)
    return _row_dot(gradient=values, other=gradient @ matrix, like=block, rows=rows, may_overwrite=True)


def convolution_term(*, output_along: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a convolution's kernel: sum over places of g . (a convolved with V).

    Args:
        output_along: the input convolved with the direction's block, without bias, shape of `output_gradient`.
        output_gradient: shape [rows, channels, ...], float.
        block: the block, whose dtype the sums have.
        rows: which axes are summed, and how; axis 1 holds channels and cannot be kept.

    Returns:
        One term an episode, shape [rows], in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=output_along, like=block, rows=rows)


def bias_term(*, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a bias: sum over tokens of g . V.

    Args:
        output_gradient: shape [rows, ..., *features], float.
        block: shape [*features], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term an episode, shape [rows] (or [rows, tokens]), in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=block, like=block, rows=rows)


def embedding_term(
    *, ids: Tensor, output_gradient: Tensor, block: Tensor, padding_index: int | None, rows: Rows = CAREFUL
) -> Tensor:
    """Contract the gradient of an embedding table: sum over tokens of g . V[id].

    Args:
        ids: looked-up rows, shape [rows, ...], int64.
        output_gradient: shape [rows, ..., features], float.
        block: shape [vocab, features], float32 or float64.
        padding_index: the row that torch gives no gradient, where the table has one.
        rows: which axes are summed, and how.

    Returns:
        One term an episode, shape [rows] (or [rows, tokens]), in the block's dtype.
    """
    gradient = output_gradient
    if padding_index is not None:
        gradient = gradient.masked_fill((ids == padding_index).unsqueeze(-1), 0.0)
    found = torch.nn.functional.embedding(ids, block)
    return _row_dot(gradient=gradient, other=found, like=block, rows=rows, may_overwrite=True)


def scale_term(*, normalised: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a norm's scale: sum over tokens of (g * xhat) . V.

    Args:
        normalised: the norm's input after centring and scaling, before its weight, shape [rows, ..., *features].
        output_gradient: shape [rows, ..., *features], float.
        block: shape [*features], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term an episode, shape [rows] (or [rows, tokens]), in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=normalised.to(dtype=block.dtype) * block, like=block, rows=rows)


def rms_scale_term(*, inputs: Tensor, output_gradient: Tensor, block: Tensor, eps: float, rows: Rows) -> Tensor:
    """Contract the gradient of an RMSNorm's scale: sum over tokens of (g * x) . V / rms(x).

    Divides once a token instead of once a number, which is the same but for rounding; where that counts, in float64 or
    where a NaN is to be left out, the normalised inputs are formed.

    Args:
        inputs: the norm's input x in the dtype it is normalised in, shape [rows, ..., *features].
        output_gradient: shape of `inputs`, float.
        block: shape [*features], float32 or float64.
        eps: added to the mean square.
        rows: which axes are summed, and how.

    Returns:
        One term an episode, shape [rows] (or [rows, tokens]), in the block's dtype.
    """
    dims = tuple(range(-block.ndim, 0))
    if rows.careful or block.dtype == torch.float64:
        normalised = rms_normalised(inputs=inputs, dims=dims, eps=eps)
        return scale_term(normalised=normalised, output_gradient=output_gradient, block=block, rows=rows)
    mean_square = torch.linalg.vector_norm(inputs, dim=dims).square() / block.numel()
    along = (output_gradient.to(dtype=block.dtype) * inputs).flatten(start_dim=-block.ndim) @ block.flatten()
    return _row_dot(gradient=along, other=torch.rsqrt(mean_square + eps), like=block, rows=rows)


def layer_normalised(*, inputs: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Centre and scale to unit variance, as LayerNorm does before its weight and bias.

    xhat = (x - mean x) / sqrt(var x + eps)

    Args:
        inputs: shape [rows, ..., *features], float.
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
        inputs: shape [rows, ..., *features], float.
        dims: the axes of the features.
        eps: added to the mean square.

    Returns:
        xhat, shape and dtype of `inputs`.
    """
    return inputs * torch.rsqrt(inputs.square().mean(dim=dims, keepdim=True) + eps)


def _matmul_dtype(*, output_gradient: Tensor, block: Tensor) -> torch.dtype:
    # bfloat16 has float32's range, so the fast matmul is safe; float16 would flush small gradients to zero. A product
    # with an adapter is so thin that full precision costs nothing to speak of, and rounding has little to average over.
    if output_gradient.dtype == torch.bfloat16 and min(block.shape) > _THIN:
        return torch.bfloat16
    return torch.promote_types(output_gradient.dtype, block.dtype)


def _row_dot(*, gradient: Tensor, other: Tensor, like: Tensor, rows: Rows, may_overwrite: bool = False) -> Tensor:
    """Multiply and sum everything but the leading axes in the dtype of `like`; `other` may be lost where so said."""
    left, right = gradient.to(dtype=like.dtype), other.to(dtype=like.dtype)
    if rows.careful:
        return _flat((left * right).masked_fill(gradient == 0, 0.0), rows).sum(dim=-1)
    # fresh memory for a product costs as much as the product
    return _flat(right.mul_(left) if may_overwrite else left * right, rows).sum(dim=-1)


def _flat(values: Tensor, rows: Rows) -> Tensor:
    return values.flatten(start_dim=rows.keep) if values.ndim > rows.keep else values.unsqueeze(-1)
