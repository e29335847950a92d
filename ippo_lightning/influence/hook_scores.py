"""Scores by hooks, batch by batch, checked against plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.influence.checksum import verify_checksum
from ippo_lightning.influence.coverage import Block, hooked_modules
from ippo_lightning.influence.hooks import HookSession
from ippo_lightning.influence.model_state import frozen, is_coarse, trainable_parameters
from ippo_lightning.influence.refusals import checked_losses, checked_segments, require_finite_scores

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


class HookScores(NamedTuple):
    """Scores of one batch or of all batches."""

    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores, shape [directions, rows]."""
    total: Tensor
    """Scores, shape [directions, rows]."""
    norms: Tensor | None
    """Norms of the rows' gradients, shape [rows]; None if not requested."""


def scores_by_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    directions: Sequence[Sequence[Block]],
    *,
    segments: Callable[[Batch], Tensor] | None,
    checksum_batches: int | None,
    with_norms: bool,
    dtype: torch.dtype,
) -> HookScores:
    """Score all batches along all directions, with one backward per batch.

    Args:
        model: as in `influence_scores`, with dropout off.
        episode_losses: as in `influence_scores`.
        batches: as in `influence_scores`.
        directions: the blocks of each direction.
        segments: as in `influence_scores`.
        checksum_batches: number of batches that are checked; None for all.
        with_norms: whether to compute the norms of the rows' gradients, too.
        dtype: dtype of the sums.

    Returns:
        Scores of all batches.

    Raises:
        CoverageError: the hooks cannot attribute a parameter's gradient to single rows.
        NonFiniteScoreError: some scores are NaN or infinite.
        ChecksumError: the scores disagree with plain autograd.
    """
    results = list(
        _batch_by_batch(
            model,
            episode_losses,
            batches,
            directions,
            segments=segments,
            checksum_batches=checksum_batches,
            with_norms=with_norms,
            dtype=dtype,
        )
    )
    if not results:
        no_norms = torch.zeros(0, dtype=dtype) if with_norms else None
        return HookScores({}, torch.zeros(len(directions), 0, dtype=dtype), no_norms)
    # A dictionary and not a set, whose order would change from run to run.
    names = {block.name: None for entry in directions for block in entry}
    # A parameter without gradient in one batch has no entry there, although it may have one in the next batch.
    parts = {
        name: torch.cat([result.by_parameter.get(name, torch.zeros_like(result.total)) for result in results], dim=1)
        for name in names
    }
    norms = [result.norms for result in results if result.norms is not None]
    total = torch.cat([result.total for result in results], dim=1)
    # A sharded model reports non-finite scores only here: a rank that stops earlier leaves the others waiting.
    require_finite_scores(total, first=0)
    return HookScores(parts, total, torch.cat(norms) if norms else None)


def _batch_by_batch(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    directions: Sequence[Sequence[Block]],
    *,
    segments: Callable[[Batch], Tensor] | None,
    checksum_batches: int | None,
    with_norms: bool,
    dtype: torch.dtype,
) -> Iterator[HookScores]:
    trainable = list(trainable_parameters(model).values())
    # Before the first forward: an uncovered parameter is reported before any pass has been made.
    hooked = hooked_modules(model, directions)
    together = is_sharded(model)
    session = HookSession(hooked, num_directions=len(directions), with_norms=with_norms, dtype=dtype)
    first = 0
    with session:
        for number, batch in enumerate(batches):
            has_checksum = checksum_batches is None or number < checksum_batches
            # Gradients of weights are a third of a full backward; only the checksum needs them.
            with nullcontext() if has_checksum else frozen(trainable):
                scores = _batch_scores(session, model, episode_losses, batch, segments, keep_graph=has_checksum)
                finite = _all_finite(scores.total, together=together)
                if not finite and not session.careful:
                    # The NaN may be in padding, where no gradient flows. Careful sums leave that out but are slower,
                    # so they are used only from the first such batch onwards.
                    session.careful = True
                    scores = _batch_scores(session, model, episode_losses, batch, segments, keep_graph=has_checksum)
                    finite = _all_finite(scores.total, together=together)
                if not together:  # ranks of a sharded model must make all passes before one of them raises
                    require_finite_scores(scores.total, first=first)
                # If the model is sharded, `finite` is of all ranks: all of them make the checksum's backward, or none.
                if has_checksum and finite:
                    coarse = session.saw_half_precision or is_coarse(model)
                    verify_checksum(
                        scores.losses, scores.total, directions, is_coarse=coarse, parts=scores.by_parameter
                    )
            first += scores.total.shape[1]
            result = HookScores(scores.by_parameter, scores.total, scores.norms)
            del scores  # its graph must not outlive the batch
            yield result


def _all_finite(scores: Tensor, *, together: bool) -> bool:
    """Return whether all scores are finite; with `together`, on all ranks."""
    broken = (~torch.isfinite(scores)).sum()
    return not bool(all_reduce_sum(broken) if together else broken)


class _BatchScores(NamedTuple):
    losses: Tensor
    by_parameter: dict[str, Tensor]
    total: Tensor
    norms: Tensor | None


def _batch_scores(
    session: HookSession,
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batch: Batch,
    segments: Callable[[Batch], Tensor] | None,
    *,
    keep_graph: bool,
) -> _BatchScores:
    losses = checked_losses(episode_losses(model, batch))
    places = None if segments is None else checked_segments(segments(batch), num_episodes=len(losses))
    parts = session.score(losses, segments=places, keep_graph=keep_graph)
    total = session.zeros(losses)
    for part in parts.values():
        total = total + part
    norms = session.norms() if session.with_norms else None
    # Without a checksum the graph has no further use. Detached losses free it before the next forward.
    return _BatchScores(losses if keep_graph else losses.detach(), parts, total, norms)
