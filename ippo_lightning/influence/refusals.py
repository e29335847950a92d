"""Errors of scoring, and the checks of the caller's losses and of the resulting scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


class CoverageError(UserError):
    """The direction is not zero on a parameter, but the hooks cannot attribute its gradient to single episodes."""


class NonFiniteScoreError(UserError):
    """The scores of some episodes are NaN or infinite.

    Args:
        message: one line.
        positions: positions of these episodes in the order of the batches; only those of the first such batch.
    """

    def __init__(self, message: str, *, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.positions = positions


class ChecksumError(RuntimeError):
    """The weighted sum of a micro-batch's scores differs from the same sum computed by plain autograd."""


def checked_losses(losses: Tensor, *, axes: tuple[str, ...] = ("rows",)) -> Tensor:
    """Return the losses if type, axes and dtype are right.

    Args:
        losses: the result of the user's function.
        axes: names of the expected axes.

    Raises:
        UserError: no tensor, another number of axes, or no floating point.
    """
    name = "episode_losses" if len(axes) == 1 else "token_losses"
    if not isinstance(losses, Tensor):
        raise UserError(f"{name}: returned {type(losses).__name__}, expected a tensor [{', '.join(axes)}] of losses")
    if losses.ndim != len(axes) or not losses.is_floating_point():
        shape, expected = tuple(losses.shape), ", ".join(axes)
        raise UserError(f"{name}: returned shape {shape} of {losses.dtype}, expected [{expected}], floating point")
    return losses


def checked_segments(segments: Tensor, *, num_episodes: int) -> Tensor:
    """Return the segments if they refer to episodes of the batch.

    Args:
        segments: the episode of each token, shape [rows, tokens], int64, below 0 for padding.
        num_episodes: number of episodes in the batch.

    Raises:
        UserError: another shape or dtype, or an episode that does not exist.
    """
    # A mask is no floating-point tensor either; it would silently mean the episodes 0 and 1.
    if segments.ndim != 2 or segments.is_floating_point() or segments.dtype == torch.bool:
        shape = tuple(segments.shape)
        raise UserError(f"segments: returned shape {shape} of {segments.dtype}, expected [rows, tokens], integers")
    if segments.numel() and int(segments.max()) >= num_episodes:
        raise UserError(f"segments: contains episode {int(segments.max())}, expected numbers below {num_episodes}")
    return segments.long()


def require_finite_scores(scores: Tensor, *, first: int) -> None:
    """Refuse scores that are NaN or infinite.

    Args:
        scores: shape [..., rows].
        first: position of the batch's first episode among all.

    Raises:
        NonFiniteScoreError: states the positions.
    """
    bad = (~torch.isfinite(scores)).flatten(end_dim=-2).any(dim=0) if scores.ndim > 1 else ~torch.isfinite(scores)
    positions: Sequence[int] = bad.nonzero().flatten().tolist()
    if positions:
        named = ", ".join(str(first + position) for position in positions[:10])
        more = f" and {len(positions) - 10} more" if len(positions) > 10 else ""
        raise NonFiniteScoreError(
            f"episode_losses: the scores of episodes {named}{more} are NaN or infinite; expected finite losses "
            "with finite gradients",
            positions=tuple(first + position for position in positions),
        )
