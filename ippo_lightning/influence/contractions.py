"""One number per row from a module's input, its output gradient and a direction's block.

Axes: inputs `[rows, ..., in]`, output_gradient `[rows, ..., out]`. The axes in between (for example the steps) are
summed, see `Rows`. Gradients of weights are never formed. By default, an output gradient of exactly zero contributes
exactly zero even if the input there is NaN, so a NaN in padding does not reach the score.

Source: Goodfellow 2015, arXiv 1510.01799 (per-example gradients from inputs and output gradients); here they are
contracted with a fixed direction instead of with themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """How products are summed to one number per row."""

    keep: int = 1
    """Number of leading axes that are not summed: 1, or 2 if a row contains several episodes (packed rows)."""
    careful: bool = True
    """Whether to leave out products with a gradient of zero. False is several times faster, but a NaN in such a
    product makes the sum NaN."""


CAREFUL = Rows()
_THIN = 64
"""Largest side of a block that counts as an adapter's: ranks of adapters are smaller, widths of layers larger."""


def linear_term(*, inputs: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a weight stored as `[out, in]`: sum over steps of g^T V a.

    Args:
        inputs: the module's input a, shape [rows, ..., in], float.
        output_gradient: gradient g at the module's output, shape [rows, ..., out], float.
        block: the direction's block V, shape [out, in], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
    """
    dtype = _matmul_dtype(output_gradient=output_gradient, block=block)
    gradient, values, matrix = output_gradient.to(dtype=dtype), inputs.to(dtype=dtype), block.to(dtype=dtype)
    out_features, in_features = block.shape
    # g^T (V a) and (g^T V) a are the same number; the narrower product in parentheses stores fewer numbers per step.
    if out_features <= in_features:
        return _row_dot(gradient=gradient, other=values @ matrix.T, like=block, rows=rows, may_overwrite=True)
    if rows.careful:  # here g^T V takes the gradient's place: it is exactly zero at each step where g is
        return _row_dot(gradient=gradient @ matrix, other=values, like=block, rows=rows)
    # The factors change places, because only `other` may be overwritten, and here g^T V is the temporary tensor.
    return _row_dot(gradient=values, other=gradient @ matrix, like=block, rows=rows, may_overwrite=True)


def convolution_term(*, output_along: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a convolution's kernel: sum over places of g . (a convolved with V).

    Args:
        output_along: the input convolved with the direction's block, without bias, shape of `output_gradient`.
        output_gradient: shape [rows, channels, ...], float.
        block: the block; the sums have its dtype.
        rows: which axes are summed, and how; axis 1 is the channels and cannot be kept.

    Returns:
        One term per row, shape [rows], in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=output_along, like=block, rows=rows)


def bias_term(*, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a bias: sum over steps of g . V.

    Args:
        output_gradient: shape [rows, ..., *features], float.
        block: shape [*features], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=block, like=block, rows=rows)


def embedding_term(
    *, ids: Tensor, output_gradient: Tensor, block: Tensor, padding_index: int | None, rows: Rows = CAREFUL
) -> Tensor:
    """Contract the gradient of an embedding table: sum over steps of g . V[id].

    Args:
        ids: indices into the table, shape [rows, ...], int64.
        output_gradient: shape [rows, ..., features], float.
        block: shape [vocab, features], float32 or float64.
        padding_index: the index that receives no gradient from torch; None if there is none.
        rows: which axes are summed, and how.

    Returns:
        One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
    """
    gradient = output_gradient
    if padding_index is not None:
        gradient = gradient.masked_fill((ids == padding_index).unsqueeze(-1), 0.0)
    found = torch.nn.functional.embedding(ids, block)
    return _row_dot(gradient=gradient, other=found, like=block, rows=rows, may_overwrite=True)


def scale_term(*, normalised: Tensor, output_gradient: Tensor, block: Tensor, rows: Rows = CAREFUL) -> Tensor:
    """Contract the gradient of a norm's scale: sum over steps of (g * xhat) . V.

    Args:
        normalised: the norm's input after centring and scaling, before its weight, shape [rows, ..., *features].
        output_gradient: shape [rows, ..., *features], float.
        block: shape [*features], float32 or float64.
        rows: which axes are summed, and how.

    Returns:
        One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
    """
    return _row_dot(gradient=output_gradient, other=normalised.to(dtype=block.dtype) * block, like=block, rows=rows)


def rms_scale_term(*, inputs: Tensor, output_gradient: Tensor, block: Tensor, eps: float, rows: Rows) -> Tensor:
    """Contract the gradient of an RMSNorm's scale: sum over steps of (g * x) . V / rms(x).

    Args:
        inputs: the norm's input x in the dtype in which it is normalised, shape [rows, ..., *features].
        output_gradient: shape of `inputs`, float.
        block: shape [*features], float32 or float64.
        eps: added to the mean square.
        rows: which axes are summed, and how.

    Returns:
        One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
    """
    dims = tuple(range(-block.ndim, 0))
    # The short way below divides once per step instead of once per feature, but it rounds differently and cannot leave
    # out single products. Float64 is chosen for exactness, and careful sums need single products.
    if rows.careful or block.dtype == torch.float64:
        normalised = rms_normalised(inputs=inputs, dims=dims, eps=eps)
        return scale_term(normalised=normalised, output_gradient=output_gradient, block=block, rows=rows)
    # A norm needs no tensor of squares of the size of the inputs.
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
    # In half precision, the centred values would be rounded before they are squared.
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
    # bfloat16 has the range of float32, so the fast matmul is safe; float16 would flush small gradients to zero. A
    # product with an adapter is so thin that full precision costs almost nothing, and it has few terms over which
    # rounding errors could average out.
    if output_gradient.dtype == torch.bfloat16 and min(block.shape) > _THIN:
        return torch.bfloat16
    return torch.promote_types(output_gradient.dtype, block.dtype)


def _row_dot(*, gradient: Tensor, other: Tensor, like: Tensor, rows: Rows, may_overwrite: bool = False) -> Tensor:
    """Multiply, and sum all but the leading axes in the dtype of `like`.

    Args:
        gradient: first factor; products with an exact zero here are left out if `rows.careful`.
        other: second factor, of a shape that broadcasts.
        like: has the dtype of the result.
        rows: which axes are summed, and how.
        may_overwrite: whether `other` is a temporary whose memory may store the product.
    """
    left, right = gradient.to(dtype=like.dtype), other.to(dtype=like.dtype)
    if rows.careful:  # 0 * NaN is NaN, so zeros are put in after the product
        return _flat((left * right).masked_fill(gradient == 0, 0.0), rows).sum(dim=-1)
    # Allocating memory for a product takes as long as the product itself.
    return _flat(right.mul_(left) if may_overwrite else left * right, rows).sum(dim=-1)


def _flat(values: Tensor, rows: Rows) -> Tensor:
    # The short way of RMSNorm has already summed the features, so there may be no axis left to flatten.
    return values.flatten(start_dim=rows.keep) if values.ndim > rows.keep else values.unsqueeze(-1)
