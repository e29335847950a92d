"""Sums and means over the tokens that count; what stands in padding never matters, not even NaN."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sums that ranks can add before anybody divides."""

    total: Tensor
    """[] float64, sum of the values."""
    total_of_squares: Tensor
    """[] float64, sum of the squared values."""
    count: Tensor  # type: ignore[assignment]  # hides the method of tuples, which nobody calls here
    """[] float64, number of the values."""


def masked_sum(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the values under the mask.

    Args:
        values: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        Shape [].
    """
    return _zero_off_mask(values, mask).sum()


def masked_mean(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values under the mask, 0.0 where the mask is empty.

    Args:
        values: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        Shape [].
    """
    return masked_sum(values=values, mask=mask) / mask.sum().clamp(min=1)


def masked_row_sum(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's sum over the steps that count, 0.0 for a row without any.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool; may have holes.

    Returns:
        Shape [rows].
    """
    return _zero_off_mask(values, mask).sum(dim=1)


def masked_row_mean(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's mean over its masked tokens, 0.0 for a row without any.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool.

    Returns:
        Shape [rows].
    """
    return _zero_off_mask(values, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def masked_moments(*, values: Tensor, mask: Tensor) -> Moments:
    """Return count, sum and sum of squares in float64, to be added over ranks.

    Args:
        values: any shape, float.
        mask: same shape, bool.
    """
    chosen = _zero_off_mask(values.double(), mask)
    return Moments(total=chosen.sum(), total_of_squares=chosen.square().sum(), count=mask.sum().double())


def mean_and_variance(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return mean and population variance, both [] float64; zeros where nothing was counted.

    Args:
        moments: of all ranks.
    """
    count = moments.count.clamp(min=1)
    mean = moments.total / count
    return mean, (moments.total_of_squares / count - mean.square()).clamp(min=0)


def whiten(
    *, values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, shift_mean: bool = True, epsilon: float = 1e-8
) -> Tensor:
    """Scale the masked values to variance 1 and, if asked, shift them to mean 0.

    (x - mean) / sqrt(variance + epsilon), so that constant values and a single one give zeros.

    Args:
        values: shape [rows, steps], float.
        mask: shape [rows, steps], bool.
        mean: shape [], of all that counts on all ranks.
        variance: shape [], population variance of the same.
        shift_mean: False keeps the mean where it was.
        epsilon: added to the variance.

    Returns:
        Shape [rows, steps], 0.0 off the mask.
    """
    scale = torch.rsqrt(variance + epsilon)
    whitened = (values - mean) * scale + (0.0 if shift_mean else mean)
    return _zero_off_mask(whitened, mask).to(values.dtype)


def _zero_off_mask(values: Tensor, mask: Tensor) -> Tensor:
    # where, not multiplication: NaN times zero is NaN
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
