"""Sums and means over the tokens that count. What stands in padding never matters, not even NaN."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.maths.shapes import AnyFloats, AnyMask, RowFloats, Scalar, StepFloats, StepMask


class Moments(NamedTuple):
    """Sums that ranks can add before the division."""

    total: Tensor
    """[] float64, sum of the values."""
    total_of_squares: Tensor
    """[] float64, sum of the squared values."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nothing here calls
    """[] float64, number of the values."""


def masked_sum(*, values: AnyFloats, mask: AnyMask) -> Scalar:
    """Return the sum of the values under the mask.

    Args:
        values: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        Shape [].
    """
    return _zero_off_mask(values, mask).sum()


def masked_mean(*, values: AnyFloats, mask: AnyMask) -> Scalar:
    """Return the mean of the values under the mask, 0.0 if the mask is empty.

    Args:
        values: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        Shape [].
    """
    # The clamp gives an empty mask 0 / 1 instead of 0 / 0; a mask with one True or more is not touched.
    return masked_sum(values=values, mask=mask) / mask.sum().clamp(min=1)


def masked_row_sum(*, values: StepFloats, mask: StepMask) -> RowFloats:
    """Return each row's sum over the steps that count, 0.0 for a row without any.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool; may have holes.

    Returns:
        Shape [rows].
    """
    counted = _zero_off_mask(values, mask)
    # A transition has one step, and nothing to add up.
    return counted.squeeze(1) if mask.shape[1] == 1 else counted.sum(dim=1)


def masked_row_mean(*, values: StepFloats, mask: StepMask) -> RowFloats:
    """Return each row's mean over its masked tokens, 0.0 for a row without any.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool, True = counts; it may have holes.

    Returns:
        Shape [rows].
    """
    sums = masked_row_sum(values=values, mask=mask)
    return sums if mask.shape[1] == 1 else sums / mask.sum(dim=1).clamp(min=1)


def masked_moments(*, values: AnyFloats, mask: AnyMask) -> Moments:
    """Return count, sum and sum of squares in float64, which ranks can add.

    Args:
        values: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        Three tensors of shape [].
    """
    # float64 before squaring: the variance is a difference of two large sums, and float32 would lose all of it
    chosen = _zero_off_mask(values.double(), mask)
    return Moments(total=chosen.sum(), total_of_squares=chosen.square().sum(), count=mask.sum().double())


def mean_and_variance(moments: Moments) -> tuple[Scalar, Scalar]:
    """Return mean and population variance, both [] float64; zeros if nothing was counted.

    Args:
        moments: of all ranks.
    """
    count = moments.count.clamp(min=1)
    mean = moments.total / count
    # Rounding can make the difference of equal numbers slightly negative, and its square root NaN.
    return mean, (moments.total_of_squares / count - mean.square()).clamp(min=0)


def whiten(
    *,
    values: StepFloats,
    mask: StepMask,
    mean: Scalar,
    variance: Scalar,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> StepFloats:
    """Scale the masked values to variance 1 and, if `shift_mean`, shift them to mean 0.

    (x - mean) / sqrt(variance + epsilon): constant values, or a single value, give zeros.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool, True = counts.
        mean: shape [], of all values that count on all ranks.
        variance: shape [], population variance of the same values.
        shift_mean: False keeps the mean where it was.
        epsilon: added to the variance.

    Returns:
        Shape [rows, steps], 0.0 where the mask is False.
    """
    scale = torch.rsqrt(variance + epsilon)
    # Centred first and shifted back after: scaling the values themselves would scale their mean too.
    whitened = (values - mean) * scale + (0.0 if shift_mean else mean)
    return _zero_off_mask(whitened, mask).to(values.dtype)


def _zero_off_mask(values: Tensor, mask: Tensor) -> Tensor:
    # `where`, not a product: NaN times zero is NaN
    return torch.where(mask, values, 0.0)
