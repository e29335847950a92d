"""Score episodes against fixed directions: the public functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import inner_product
from ippo_lightning.errors import UserError
from ippo_lightning.influence.coverage import Block, accumulation_dtype, active_blocks
from ippo_lightning.influence.directions import Direction
from ippo_lightning.influence.fitting_parts import in_fitting_parts
from ippo_lightning.influence.hook_scores import scores_by_hooks
from ippo_lightning.influence.methods import derivatives, norms_without_hooks, scores_without_hooks
from ippo_lightning.influence.model_state import undisturbed
from ippo_lightning.influence.options import (
    Method,
    Normalisation,
    TokenMethod,
    check_options,
    check_sharding,
    check_token_method,
    num_checked_batches,
)
from ippo_lightning.influence.refusals import require_finite_scores

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


class EpisodeScores(NamedTuple):
    """Scores, and the part of each parameter in them."""

    scores: Tensor
    """Shape [directions, rows]."""
    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores before normalisation, shape [directions, rows]; only from "hooks"."""


def influence_scores(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    direction: Direction | Sequence[Direction],
    *,
    method: Method = "hooks",
    normalise: Normalisation = "none",
    lengths: Callable[[Batch], Tensor] | None = None,
    segments: Callable[[Batch], Tensor] | None = None,
    known_losses: Callable[[Batch], Tensor] | None = None,
    checksum_batches: int | None = 1,
) -> Tensor:
    """Score every episode by the inner product of its loss gradient with a direction.

    s_i = <grad loss_i, V>. If V is the gradient of a validation loss, s_i > 0 means that a small gradient step on
    episode i also lowers the validation loss.
    Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597, the score of an episode.

    An episode is one entry of the losses: a response, a transition, an image. The model is evaluated with dropout off.
    Afterwards its parameters, buffers, `.grad`, modes, flags, hooks and torch's random state are as before, also after
    an error. Pass the bare module, not a DistributedDataParallel wrapper. If the model is sharded (FSDP2), each rank
    scores its own episodes, and all ranks need the same number of batches.

    Args:
        model: any module, with the parameters at which the losses are differentiated.
        episode_losses: called with the model and a batch; returns one loss per episode, shape [rows], float, with its
            graph. The loss of an episode must not depend on the rest of the batch: no mean over the batch.
        batches: micro-batches of episodes; scores have the same order.
        direction: parameter name to block, as `target_gradient` returns it, or a sequence of directions. A trainable
            parameter without a block, or with a zero block, does not count.
        method: "hooks" makes one backward per batch and knows the modules of language models (linear layers, adapters,
            embeddings, norms, convolutions); "forward" makes one forward-mode pass and works for all kernels with a
            forward derivative; "finite_difference" makes two forwards, or one with `known_losses`, in float32 or
            better; "per_episode" makes one backward per episode and works for everything. A further direction costs
            little with "hooks" and one more pass with the other methods.
        normalise: "cosine" divides by the norms of both gradients, over the parameters that count ("hooks" and
            "per_episode" only); "length" divides by `lengths`.
        lengths: called with a batch; returns the number of tokens per episode, shape [rows]. Required for
            normalise="length".
        segments: called with a batch whose rows contain several episodes; returns the episode of each token, shape
            [rows, tokens], int64, counted from 0 in each batch, below 0 for padding. Only "hooks" needs it.
        known_losses: called with a batch; returns the losses at the current parameters, shape [rows]. Saves
            "finite_difference" one forward.
        checksum_batches: number of micro-batches, counted from the first, that "hooks" and "forward" compare with
            plain autograd; None or -1 for all, 0 for none, if another call of the same model makes the check.

    Returns:
        Scores, shape [rows] over all batches, or [directions, rows] for a sequence of directions; float64 if any block
        of a direction is float64, else float32.

    Raises:
        UserError: a wrong argument, losses of a wrong shape, or a model for which the method would be wrong.
        CoverageError: "hooks" does not cover a parameter; the message names it.
        NonFiniteScoreError: some scores are NaN or infinite; the message names their positions.
        ChecksumError: the scores disagree with plain autograd.
    """
    directions = [direction] if isinstance(direction, Mapping) else list(direction)
    result = score_episodes(
        model,
        episode_losses,
        batches,
        directions,
        method=method,
        normalise=normalise,
        lengths=lengths,
        segments=segments,
        known_losses=known_losses,
        checksum_batches=checksum_batches,
    )
    return result.scores[0] if isinstance(direction, Mapping) else result.scores


def score_episodes(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    directions: Sequence[Direction],
    *,
    method: Method = "hooks",
    normalise: Normalisation = "none",
    lengths: Callable[[Batch], Tensor] | None = None,
    segments: Callable[[Batch], Tensor] | None = None,
    known_losses: Callable[[Batch], Tensor] | None = None,
    checksum_batches: int | None = 1,
    split: Callable[[Batch], Sequence[Batch]] | None = None,
) -> EpisodeScores:
    """Score every episode along several directions, and split the scores by parameter (only with "hooks").

    Args:
        model: as in `influence_scores`.
        episode_losses: as in `influence_scores`.
        batches: as in `influence_scores`.
        directions: at least one.
        method: as in `influence_scores`.
        normalise: as in `influence_scores`.
        lengths: as in `influence_scores`.
        segments: as in `influence_scores`.
        known_losses: as in `influence_scores`.
        checksum_batches: as in `influence_scores`.
        split: called with a batch whose forward does not fit in memory; returns its parts, in the order of its rows.
            Only "finite_difference" needs it: the other methods score one batch after the other, and a caller can go on
            from the batch that failed. None raises the error of the pass.

    Returns:
        Scores, and their parts by parameter.

    Raises:
        UserError: as in `influence_scores`, which lists the other errors, too.
    """
    check_options(
        method=method,
        normalise=normalise,
        has_lengths=lengths is not None,
        checksum_batches=checksum_batches,
        num_directions=len(directions),
    )
    check_sharding(model, method=method)
    blocks = [active_blocks(model, entry) for entry in directions]
    # The finest dtype of all directions, because their scores are rows of one tensor.
    dtype = max((accumulation_dtype(entry) for entry in directions), key=lambda kind: torch.finfo(kind).bits)
    has_norms = normalise == "cosine"
    noted: list[Tensor] = []
    batches = _noting_lengths(batches, lengths, noted)
    checked = num_checked_batches(checksum_batches)
    norms: Tensor | None
    with undisturbed(model):
        # Hooks serve all directions in one pass, so the batches of a generator need not be stored.
        if method == "hooks":
            parts, scores, norms = scores_by_hooks(
                model,
                episode_losses,
                batches,
                blocks,
                segments=segments,
                checksum_batches=checked,
                with_norms=has_norms,
                dtype=dtype,
            )
        else:
            kept = list(batches)  # every direction passes over the batches again
            retries = split is not None and method == "finite_difference"
            losses = in_fitting_parts(episode_losses, split) if split is not None and retries else episode_losses
            scores_of_each = [
                scores_without_hooks(
                    model,
                    losses,
                    kept,
                    entry,
                    method=method,
                    known_losses=known_losses,
                    checksum_batches=checked,
                    dtype=dtype,
                )
                for entry in blocks
            ]
            scores, parts = torch.stack(scores_of_each), {}
            # The first direction stands for all: `_cosines` refuses directions that count other parameters.
            norms = norms_without_hooks(model, episode_losses, kept, blocks[0], dtype=dtype) if has_norms else None
    if norms is not None:
        scores = _cosines(scores, norms, blocks)
    elif normalise == "length" and noted:
        # The clamp keeps an episode without tokens from being 0 / 0.
        scores = scores / torch.cat(noted).to(scores).clamp(min=1)
    return EpisodeScores(scores, parts)


def token_scores(
    model: Model,
    token_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    direction: Direction,
    *,
    method: TokenMethod = "forward",
    known_losses: Callable[[Batch], Tensor] | None = None,
    checksum_batches: int | None = 1,
) -> list[Tensor]:
    """Score every term of the episodes' losses; the scores of an episode's terms sum to its score.

    s_it = derivative of loss term t of episode i along the direction. This splits a score by the predicted token. The
    sums over positions in a backward ("hooks") would split it by the position that a gradient passes through, which is
    a different quantity.

    Args:
        model: as in `influence_scores`.
        token_losses: called with the model and a batch; returns the terms, shape [rows, steps], float. Their sum over
            steps is the episode's loss.
        batches: as in `influence_scores`.
        direction: one direction, as in `influence_scores`.
        method: as in `influence_scores`.
        known_losses: called with a batch; returns the terms at the current parameters, shape [rows, steps].
        checksum_batches: as in `influence_scores`.

    Returns:
        One tensor [rows, steps] per batch; float64 if any block of the direction is float64, else float32.

    Raises:
        UserError: as in `influence_scores`.
        NonFiniteScoreError: some scores are NaN or infinite.
        ChecksumError: the scores disagree with plain autograd.
    """
    check_token_method(method)
    check_sharding(model, method=method)
    blocks, dtype = active_blocks(model, direction), accumulation_dtype(direction)
    with undisturbed(model):
        parts = derivatives(
            model,
            token_losses,
            list(batches),
            blocks,
            method=method,
            known_losses=known_losses,
            checksum_batches=num_checked_batches(checksum_batches),
            dtype=dtype,
            axes=("rows", "steps"),
        )
    first = 0
    for part in parts:
        # The sum of a row is not finite if one of its tokens is not, and the message names episodes.
        require_finite_scores(part.sum(dim=1), first=first)
        first += len(part)
    return parts


def _noting_lengths(
    batches: Iterable[Batch], lengths: Callable[[Batch], Tensor] | None, noted: list[Tensor]
) -> Iterator[Batch]:
    """Yield the batches and append the lengths of each to `noted`, as a generator of batches can be read only once."""
    for batch in batches:
        if lengths is not None:
            noted.append(lengths(batch))
        yield batch


def _cosines(scores: Tensor, norms: Tensor, blocks: Sequence[Sequence[Block]]) -> Tensor:
    """Divide scores by the norms of both gradients; an episode without gradient scores 0."""
    # The norms run over the parameters that count, so one set of norms serves only directions that count the same ones.
    if len({tuple(block.name for block in entry) for entry in blocks}) > 1:
        raise UserError("normalise: 'cosine' along several directions requires them to be zero on the same parameters")
    directions = [[block.direction for block in entry] for entry in blocks]
    squares = [inner_product(entry, entry) for entry in directions]
    direction_norms = torch.tensor(squares, dtype=scores.dtype, device=scores.device).sqrt()
    product = norms.to(scores) * direction_norms[:, None]
    # `where` computes both branches: the clamp keeps the one that is not taken from being 0 / 0.
    return torch.where(product > 0, scores / product.clamp(min=torch.finfo(scores.dtype).tiny), 0.0)
