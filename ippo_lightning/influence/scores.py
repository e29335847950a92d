"""Score episodes against a fixed direction: the front door, and everything it refuses to return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence.checksum import verify_checksum
from ippo_lightning.influence.coverage import Block, accumulation_dtype, active_blocks, hooked_modules
from ippo_lightning.influence.failures import NonFiniteScoreError
from ippo_lightning.influence.hooks import HookSession
from ippo_lightning.influence.per_episode import per_episode_scores
from ippo_lightning.influence.surroundings import frozen, trainable_parameters, undisturbed

Method = Literal["hooks", "per_episode"]
Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


def influence_scores(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    direction: Mapping[str, Tensor],
    *,
    method: Method = "hooks",
    checksum_batches: int | None = 1,
) -> Tensor:
    """Score every episode by the inner product of its loss gradient with a direction.

    s_i = <grad loss_i, V>; with V the gradient of a validation loss, s_i > 0 says that a small gradient step on
    episode i lowers that validation loss too.
    Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597, the score of an episode.

    The model is evaluated with dropout off. Its parameters, buffers, `.grad`, modes, flags, hooks and torch's random
    state are as before afterwards, also after an error. Hand in the bare module, not a DistributedDataParallel wrapper.

    Args:
        model: any module, with its parameters where they shall be differentiated.
        episode_losses: called with the model and a batch; returns one loss an episode, shape [episodes], float, with
            its graph. A loss must mean the same for every episode: no mean over the batch.
        batches: micro-batches of episodes, in the order that the scores shall have.
        direction: parameter name to block, as `target_gradient` returns it. Trainable parameters without a block, or
            with a zero block, do not count.
        method: "hooks" is one backward a batch for the modules of language models (linear layers, adapters,
            embeddings, norms); "per_episode" is one backward an episode for anything.
        checksum_batches: how many micro-batches, from the first, "hooks" compares with plain autograd; at least 1, and
            None or -1 for all.

    Returns:
        Scores, shape [episodes] over all batches, float32, or float64 if any block of `direction` is.

    Raises:
        UserError: a wrong argument, or losses of a wrong shape.
        CoverageError: "hooks" cannot account for a parameter, which is named.
        NonFiniteScoreError: some scores are NaN or infinite; their positions are named.
        ChecksumError: "hooks" disagrees with plain autograd.
    """
    if method not in get_args(Method):
        raise UserError(f"method: got '{method}', expected one of {', '.join(get_args(Method))}")
    if checksum_batches is not None and checksum_batches != -1 and checksum_batches < 1:
        raise UserError(f"checksum_batches: got {checksum_batches}, expected at least 1, or None or -1 for all")
    blocks = active_blocks(model, direction)
    dtype = accumulation_dtype(direction)
    with undisturbed(model):
        if method == "per_episode":
            parts = _by_backward(model, episode_losses, batches, blocks, dtype)
        else:
            unlimited = checksum_batches is None or checksum_batches == -1
            parts = _by_hooks(model, episode_losses, batches, blocks, dtype, None if unlimited else checksum_batches)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def _by_backward(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    dtype: torch.dtype,
) -> list[Tensor]:
    parts: list[Tensor] = []
    for batch in batches:
        losses = _checked_losses(episode_losses(model, batch))
        parts.append(_checked_scores(per_episode_scores(losses, blocks, dtype=dtype), parts))
    return parts


def _by_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    blocks: list[Block],
    dtype: torch.dtype,
    checksum_batches: int | None,
) -> list[Tensor]:
    trainable = list(trainable_parameters(model).values())
    session = HookSession(hooked_modules(model, blocks), dtype=dtype)
    parts: list[Tensor] = []
    with session:
        for number, batch in enumerate(batches):
            has_checksum = checksum_batches is None or number < checksum_batches
            # Gradients of weights are a third of a full backward; only the checksum needs them.
            with nullcontext() if has_checksum else frozen(trainable):
                losses = _checked_losses(episode_losses(model, batch))
                scores = _checked_scores(session.score(losses, keep_graph=has_checksum), parts)
                if has_checksum:
                    is_coarse = session.saw_half_precision or torch.get_float32_matmul_precision() != "highest"
                    verify_checksum(losses, scores, blocks, is_coarse=is_coarse)
                del losses
            parts.append(scores)
    return parts


def _checked_losses(losses: Tensor) -> Tensor:
    if not isinstance(losses, Tensor):
        raise UserError(f"episode_losses: returned {type(losses).__name__}, expected a tensor of one loss an episode")
    if losses.ndim != 1 or not losses.is_floating_point():
        shape = tuple(losses.shape)
        raise UserError(
            f"episode_losses: returned shape {shape} of {losses.dtype}, expected [episodes], floating point"
        )
    return losses


def _checked_scores(scores: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    bad = (~torch.isfinite(scores)).nonzero().flatten()
    if bad.numel():
        first = sum(len(part) for part in earlier)
        positions = ", ".join(str(first + position) for position in bad[:10].tolist())
        more = f" and {bad.numel() - 10} more" if bad.numel() > 10 else ""
        raise NonFiniteScoreError(
            f"episode_losses: the scores of episodes {positions}{more} are NaN or infinite; expected finite losses "
            "with finite gradients"
        )
    return scores
