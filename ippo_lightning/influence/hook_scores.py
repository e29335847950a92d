"""Scores by hooks, batch after batch, checked against plain autograd."""

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
    """What one batch gave."""

    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores, shape [directions, rows]."""
    total: Tensor
    """Shape [directions, rows]."""
    norms: Tensor | None
    """Lengths of the episodes' gradients, shape [rows], where asked for."""


def scores_by_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    directions: Sequence[list[Block]],
    *,
    segments: Callable[[Batch], Tensor] | None,
    checksum_batches: int | None,
    with_norms: bool,
    dtype: torch.dtype,
) -> Iterator[HookScores]:
    """Score batch after batch; arguments as in `influence_scores`.

    Args:
        model: see there.
        episode_losses: see there.
        batches: see there.
        directions: for each its blocks.
        segments: see there.
        checksum_batches: None for all.
        with_norms: whether gradient lengths are wanted.
        dtype: of the sums.
    """
    trainable = list(trainable_parameters(model).values())
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
                    # A NaN in padding, where no gradient flows? Once more, leaving that out, now and from here on.
                    session.careful = True
                    scores = _batch_scores(session, model, episode_losses, batch, segments, keep_graph=has_checksum)
                    finite = _all_finite(scores.total, together=together)
                if not together:  # ranks that go together go on to the end, and say so then
                    require_finite_scores(scores.total, first=first)
                if has_checksum and finite:
                    coarse = session.saw_half_precision or is_coarse(model)
                    verify_checksum(scores.losses, scores.total, directions, is_coarse=coarse)
            first += scores.total.shape[1]
            result = HookScores(scores.by_parameter, scores.total, scores.norms)
            del scores  # its graph must not outlive the batch
            yield result


def _all_finite(scores: Tensor, *, together: bool) -> bool:
    """Whether all scores are finite, on all ranks where they go together."""
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
    # without a checksum the graph is of no more use, and would outlive the next forward
    return _BatchScores(losses if keep_graph else losses.detach(), parts, total, norms)
