"""What scoring accepts from its caller, and what it refuses to return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


class CoverageError(UserError):
    """A parameter counts in the direction, but the hooks cannot attribute its gradient to single episodes."""


class NonFiniteScoreError(UserError):
    """Some episodes scored NaN or infinity.

    Args:
        message: one line.
        positions: of the episodes, in the order of the batches; those of the first batch that has any.
    """

    def __init__(self, message: str, *, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.positions = positions


class ChecksumError(RuntimeError):
    """The scores of a micro-batch do not add up to what plain autograd says about the same micro-batch."""


def checked_losses(losses: Tensor, *, axes: tuple[str, ...] = ("rows",)) -> Tensor:
    """Return the losses if they are what was promised.

    Args:
        losses: what the user's function returned.
        axes: names of the axes that are expected.

    Raises:
        UserError: no tensor, another number of axes, or no floating point.
    """
    name = "episode_losses" if len(axes) == 1 else "token_losses"
    if not isinstance(losses, Tensor):
        raise UserError(f"{name}: returned {type(losses).__name__}, expected a tensor of one loss an episode")
    if losses.ndim != len(axes) or not losses.is_floating_point():
        shape, expected = tuple(losses.shape), ", ".join(axes)
        raise UserError(f"{name}: returned shape {shape} of {losses.dtype}, expected [{expected}], floating point")
    return losses


def checked_segments(segments: Tensor, *, num_episodes: int) -> Tensor:
    """Return the segments if they name episodes of the batch.

    Args:
        segments: the episode of each token, shape [rows, tokens], int64, below 0 for none.
        num_episodes: in the batch.

    Raises:
        UserError: another shape or dtype, or an episode that is not there.
    """
    if segments.ndim != 2 or segments.is_floating_point() or segments.dtype == torch.bool:
        shape = tuple(segments.shape)
        raise UserError(f"segments: returned shape {shape} of {segments.dtype}, expected [rows, tokens], integers")
    if segments.numel() and int(segments.max()) >= num_episodes:
        raise UserError(f"segments: names episode {int(segments.max())}, expected numbers below {num_episodes}")
    return segments.long()


def require_finite_scores(scores: Tensor, *, first: int) -> None:
    """Refuse scores that are NaN or infinite.

    Args:
        scores: shape [..., episodes].
        first: position of the batch's first episode among all.

    Raises:
        NonFiniteScoreError: the positions are named.
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
