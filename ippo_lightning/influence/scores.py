"""Score episodes against fixed directions: the front door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import inner_product, is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.influence.coverage import Block, accumulation_dtype, active_blocks
from ippo_lightning.influence.finite_difference import difference_scores
from ippo_lightning.influence.forward import forward_derivative, verify_forward
from ippo_lightning.influence.hook_scores import scores_by_hooks
from ippo_lightning.influence.model_state import undisturbed
from ippo_lightning.influence.per_episode import per_episode_norms, per_episode_scores
from ippo_lightning.influence.refusals import checked_losses, require_finite_scores

Method = Literal["hooks", "forward", "finite_difference", "per_episode"]
Normalisation = Literal["none", "cosine", "length"]
Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
Direction = Mapping[str, Tensor]


class EpisodeScores(NamedTuple):
    """Scores and what they are made of."""

    scores: Tensor
    """Shape [directions, rows]."""
    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores before they are normalised, shape [directions, rows]; by "hooks"."""


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

    s_i = <grad loss_i, V>; with V the gradient of a validation loss, s_i > 0 says that a small gradient step on
    episode i lowers that validation loss too.
    Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597, the score of an episode.

    The model is evaluated with dropout off. Its parameters, buffers, `.grad`, modes, flags, hooks and torch's random
    state are as before afterwards, also after an error. Hand in the bare module, not a DistributedDataParallel wrapper.
    Where ranks hold parts of the parameters (FSDP2), each rank scores its own episodes and must have as many batches.

    Args:
        model: any module, with its parameters where they shall be differentiated.
        episode_losses: called with the model and a batch; returns one loss an episode, shape [rows], float, with
            its graph. A loss must mean the same for every episode: no mean over the batch.
        batches: micro-batches of episodes, in the order that the scores shall have.
        direction: parameter name to block, as `target_gradient` returns it, or several of them. Trainable parameters
            without a block, or with a zero block, do not count.
        method: "hooks" is one backward a batch for the modules of language models (linear layers, adapters,
            embeddings, norms, convolutions); "forward" is one forward-mode pass for anything whose kernels have a
            forward derivative; "finite_difference" is two forwards, or one with `known_losses`, in float32 or better;
            "per_episode" is one backward an episode for anything. Several directions cost "hooks" little, the other
            ways a pass each.
        normalise: "cosine" divides by the lengths of both gradients, over the parameters that count ("hooks" and
            "per_episode"); "length" divides by `lengths`.
        lengths: the episodes' token counts, shape [rows], for normalise="length".
        segments: the episode of each token where rows hold several episodes, shape [rows, tokens], int64, counted from
            0 in each batch, below 0 for none. For "hooks"; the others need no such hint.
        known_losses: the losses at the present parameters, shape [rows], which save "finite_difference" a forward.
        checksum_batches: how many micro-batches, from the first, "hooks" and "forward" compare with plain autograd; at
            least 1, and None or -1 for all.

    Returns:
        Scores, shape [rows] over all batches, or [directions, rows] for a sequence of directions; float32, or
        float64 if any block of a direction is.

    Raises:
        UserError: a wrong argument, losses of a wrong shape, or a model that the method would get wrong.
        CoverageError: "hooks" cannot account for a parameter, which is named.
        NonFiniteScoreError: some scores are NaN or infinite; their positions are named.
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
) -> EpisodeScores:
    """Do what `influence_scores` does for several directions, and split the scores by parameter ("hooks").

    Args:
        model: as in `influence_scores`, and so are the others.
        episode_losses: see there.
        batches: see there.
        directions: at least one.
        method: see there.
        normalise: see there.
        lengths: see there.
        segments: see there.
        known_losses: see there.
        checksum_batches: see there.

    Returns:
        Scores, and their parts.

    Raises:
        UserError: as in `influence_scores`, and the other errors named there.
    """
    _check_options(method, normalise, lengths, checksum_batches, num_directions=len(directions))
    _refuse_sharded(model, method)
    blocks = [active_blocks(model, entry) for entry in directions]
    dtype = max((accumulation_dtype(entry) for entry in directions), key=lambda kind: torch.finfo(kind).bits)
    has_norms = normalise == "cosine"
    noted: list[Tensor] = []
    checked = None if checksum_batches is None or checksum_batches == -1 else checksum_batches
    with undisturbed(model):
        if method == "hooks":
            noting = _noting(batches, lengths, noted)
            scores, parts, norms = _by_hooks(
                model, episode_losses, noting, blocks, segments, checked, with_norms=has_norms, dtype=dtype
            )
        else:
            kept = list(_noting(batches, lengths, noted))
            rows = [_by_method(method, model, episode_losses, kept, b, known_losses, checked, dtype) for b in blocks]
            scores, parts = torch.stack(rows), dict[str, Tensor]()
            norms = _plain_norms(model, episode_losses, kept, blocks[0], dtype) if has_norms else None
    if norms is not None:
        scores = _cosines(scores, norms, blocks)
    elif normalise == "length" and noted:
        scores = scores / torch.cat(noted).to(scores).clamp(min=1)
    return EpisodeScores(scores, parts)


def token_scores(
    model: Model,
    token_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    direction: Direction,
    *,
    method: Literal["forward", "finite_difference"] = "forward",
    known_losses: Callable[[Batch], Tensor] | None = None,
    checksum_batches: int | None = 1,
) -> list[Tensor]:
    """Score every term of the episodes' losses; the terms of an episode sum to its score.

    s_it = derivative of loss term t of episode i along the direction. This splits the score by what is predicted; sums
    over positions inside a backward ("hooks") would split it by where a gradient passes, which is something else.

    Args:
        model: as in `influence_scores`.
        token_losses: called with the model and a batch; returns the terms, shape [rows, steps], float, whose sum
            over tokens is the episode's loss.
        batches: as in `influence_scores`.
        direction: as in `influence_scores`.
        method: see `influence_scores`.
        known_losses: the terms at the present parameters, shape [rows, steps].
        checksum_batches: see `influence_scores`.

    Returns:
        One tensor [rows, steps] a batch, in float32, or float64 if any block of the direction is.

    Raises:
        UserError: as in `influence_scores`.
        NonFiniteScoreError: some scores are NaN or infinite.
        ChecksumError: the scores disagree with plain autograd.
    """
    if method not in ("forward", "finite_difference"):
        raise UserError(f"method: got '{method}', expected forward or finite_difference for scores of tokens")
    _refuse_sharded(model, method)
    blocks, dtype = active_blocks(model, direction), accumulation_dtype(direction)
    checked = None if checksum_batches is None or checksum_batches == -1 else checksum_batches
    with undisturbed(model):
        parts = _derivatives(
            method, model, token_losses, list(batches), blocks, known_losses, checked, dtype, ("rows", "steps")
        )
    first = 0
    for part in parts:
        require_finite_scores(part.sum(dim=1), first=first)
        first += len(part)
    return parts


def _check_options(
    method: str, normalise: str, lengths: object, checksum_batches: int | None, *, num_directions: int
) -> None:
    if method not in get_args(Method):
        raise UserError(f"method: got '{method}', expected one of {', '.join(get_args(Method))}")
    if normalise not in get_args(Normalisation):
        raise UserError(f"normalise: got '{normalise}', expected one of {', '.join(get_args(Normalisation))}")
    if normalise == "length" and lengths is None:
        raise UserError("lengths: got None, expected a function of a batch for normalise='length'")
    if normalise == "cosine" and method not in ("hooks", "per_episode"):
        raise UserError(f"normalise: 'cosine' needs the episodes' gradients, which method='{method}' never has")
    if checksum_batches is not None and checksum_batches != -1 and checksum_batches < 1:
        raise UserError(f"checksum_batches: got {checksum_batches}, expected at least 1, or None or -1 for all")
    if num_directions == 0:
        raise UserError("direction: got an empty sequence, expected at least one direction")


def _refuse_sharded(model: nn.Module, method: str) -> None:
    if method in ("forward", "per_episode") and is_sharded(model):
        raise UserError(
            f"method: '{method}' needs whole parameters, and ranks hold parts of them; use hooks or finite_difference"
        )


def _noting(
    batches: Iterable[Batch], lengths: Callable[[Batch], Tensor] | None, noted: list[Tensor]
) -> Iterator[Batch]:
    for batch in batches:
        if lengths is not None:
            noted.append(lengths(batch))
        yield batch


def _by_hooks(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    blocks: Sequence[list[Block]],
    segments: Callable[[Batch], Tensor] | None,
    checked: int | None,
    *,
    with_norms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    results = list(
        scores_by_hooks(
            model,
            episode_losses,
            batches,
            blocks,
            segments=segments,
            checksum_batches=checked,
            with_norms=with_norms,
            dtype=dtype,
        )
    )
    if not results:
        return torch.zeros(len(blocks), 0, dtype=dtype), {}, torch.zeros(0, dtype=dtype) if with_norms else None
    names = {block.name: None for entry in blocks for block in entry}
    parts = {
        name: torch.cat([result.by_parameter.get(name, torch.zeros_like(result.total)) for result in results], dim=1)
        for name in names
    }
    norms = [result.norms for result in results if result.norms is not None]
    total = torch.cat([result.total for result in results], dim=1)
    require_finite_scores(total, first=0)  # ranks that go together say so only now, when all passes are made
    return total, parts, torch.cat(norms) if norms else None


def _by_method(
    method: Method,
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: list[Block],
    known_losses: Callable[[Batch], Tensor] | None,
    checked: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Score along one direction, shape [rows]."""
    if method == "per_episode":
        losses = (checked_losses(episode_losses(model, batch)) for batch in batches)
        parts = [per_episode_scores(row, blocks, dtype=dtype) for row in losses]
    else:
        parts = _derivatives(method, model, episode_losses, batches, blocks, known_losses, checked, dtype, ("rows",))
    first = 0
    for part in parts:
        require_finite_scores(part, first=first)
        first += len(part)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def _derivatives(
    method: str,
    model: Model,
    losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: list[Block],
    known_losses: Callable[[Batch], Tensor] | None,
    checked: int | None,
    dtype: torch.dtype,
    axes: tuple[str, ...],
) -> list[Tensor]:
    """Differentiate whatever shape of losses along one direction, without a backward."""

    def function(of: Model, batch: Batch) -> Tensor:
        return checked_losses(losses(of, batch), axes=axes)

    if method == "finite_difference":
        known = None if known_losses is None else [known_losses(batch) for batch in batches]
        return difference_scores(model, function, batches, blocks, known=known, step=None, dtype=dtype)
    parts = []
    for number, batch in enumerate(batches):
        _, derivative = forward_derivative(model, function, batch, blocks, dtype=dtype)
        if checked is None or number < checked:
            verify_forward(model, function, batch, blocks, derivative)
        parts.append(derivative)
    return parts


def _plain_norms(
    model: Model,
    episode_losses: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: Sequence[Block],
    dtype: torch.dtype,
) -> Tensor:
    parts = [per_episode_norms(episode_losses(model, batch), blocks, dtype=dtype) for batch in batches]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def _cosines(scores: Tensor, norms: Tensor, blocks: Sequence[Sequence[Block]]) -> Tensor:
    """Divide by the lengths of both gradients; an episode without any gradient scores 0."""
    if len({tuple(block.name for block in entry) for entry in blocks}) > 1:
        raise UserError("normalise: 'cosine' along several directions needs them to be zero on the same parameters")
    directions = [[block.direction for block in entry] for entry in blocks]
    squares = [inner_product(entry, entry) for entry in directions]
    length = torch.tensor(squares, dtype=scores.dtype, device=scores.device).sqrt()
    product = norms.to(scores) * length[:, None]
    return torch.where(product > 0, scores / product.clamp(min=torch.finfo(scores.dtype).tiny), 0.0)
