"""Options of scoring: their allowed values, and the combinations that make no sense."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError

Method = Literal["hooks", "forward", "finite_difference", "per_episode"]
"""How scores are computed; see `influence_scores`."""
TokenMethod = Literal["forward", "finite_difference"]
"""How scores of tokens are computed; see `token_scores`."""
Normalisation = Literal["none", "cosine", "length"]
"""What scores are divided by; see `influence_scores`."""

_ALL_BATCHES = -1


def check_options(
    *,
    method: str,
    normalise: str,
    has_lengths: bool,
    checksum_batches: int | None,
    num_directions: int,
) -> None:
    """Refuse options that are unknown or contradict each other.

    Args:
        method: one of `Method`.
        normalise: one of `Normalisation`.
        has_lengths: whether the caller passed `lengths`.
        checksum_batches: at least 0, or None or -1 for all batches.
        num_directions: number of directions.

    Raises:
        UserError: names the option, its value, and what is allowed.
    """
    if method not in get_args(Method):
        raise UserError(f"method: got '{method}', expected one of {', '.join(get_args(Method))}")
    if normalise not in get_args(Normalisation):
        raise UserError(f"normalise: got '{normalise}', expected one of {', '.join(get_args(Normalisation))}")
    if normalise == "length" and not has_lengths:
        raise UserError("lengths: got None, expected a function of a batch for normalise='length'")
    if normalise == "cosine" and method not in ("hooks", "per_episode"):
        raise UserError(
            f"normalise: 'cosine' requires gradients of single episodes, which method='{method}' does not compute; "
            "use method='hooks' or 'per_episode'"
        )
    if checksum_batches is not None and checksum_batches != _ALL_BATCHES and checksum_batches < 0:
        raise UserError(f"checksum_batches: got {checksum_batches}, expected at least 0, or None or -1 for all")
    if num_directions == 0:
        raise UserError("direction: got an empty sequence, expected at least one direction")


def check_token_method(method: str) -> None:
    """Refuse a method that cannot score tokens.

    Args:
        method: one of `TokenMethod`.

    Raises:
        UserError: another method.
    """
    if method not in get_args(TokenMethod):
        raise UserError(f"method: got '{method}', expected forward or finite_difference for scores of tokens")


def check_sharding(model: nn.Module, *, method: str) -> None:
    """Refuse a method that requires full parameters for a model with sharded ones.

    Args:
        model: any module.
        method: one of `Method`.

    Raises:
        UserError: "forward" or "per_episode" with a sharded model.
    """
    # FSDP2 averages the gradients of weights over ranks, which mixes the episodes of different ranks. "hooks" reads the
    # gradients at outputs, which stay on their rank.
    if method in ("forward", "per_episode") and is_sharded(model):
        raise UserError(
            f"method: '{method}' requires full parameters, but the model is sharded; use hooks or finite_difference"
        )


def num_checked_batches(checksum_batches: int | None) -> int | None:
    """Return the number of batches to check, None for all.

    Args:
        checksum_batches: the caller's option; -1 also means all batches.
    """
    return None if checksum_batches == _ALL_BATCHES else checksum_batches
