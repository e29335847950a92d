"""Log-probs and entropy of tokens without a second copy of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ippo_lightning.errors import UserError


def token_log_probs(*, logits: Tensor, ids: Tensor, temperature: float, chunk_size: int | None = None) -> Tensor:
    """Return log softmax(logits / temperature) at the given ids.

    Args:
        logits: shape [rows, steps, vocab], float; the row at a position predicts the id at that position.
        ids: shape [rows, steps], int64.
        temperature: > 0.
        chunk_size: tokens worked on at a time; float32 copies of their logits are all that lives besides `logits`,
            also where `logits` is a slice of something longer. Null for as many as make 64 MiB of them.

    Returns:
        Nats, shape [rows, steps], float32 (float64 for float64 logits).

    Raises:
        UserError: temperature <= 0.
    """
    return _chunked(_log_probs_of_chunk, logits, ids, temperature=temperature, chunk_size=chunk_size)[0]


def token_log_probs_and_entropy(
    *,
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    chunk_size: int | None = None,
    detach_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return log-probs as `token_log_probs` does, and the entropy of each position's distribution.

    H = -sum_v p_v log p_v; a forbidden token, whose logit is -inf, adds nothing to it.

    Args:
        logits: shape [rows, steps, vocab], float.
        ids: shape [rows, steps], int64.
        temperature: > 0.
        chunk_size: see `token_log_probs`.
        detach_entropy: the entropy is for the log only, no gradient flows through it.

    Returns:
        log-probs and entropy, nats, each [rows, steps].

    Raises:
        UserError: temperature <= 0.
    """
    of_chunk = _both_of_chunk_detached if detach_entropy else _both_of_chunk
    log_probs, entropy = _chunked(of_chunk, logits, ids, temperature=temperature, chunk_size=chunk_size)
    return log_probs, entropy


_CHUNK_ENTRIES = 2**24
_OfChunk = Callable[[Tensor, Tensor, float], tuple[Tensor, ...]]


def _chunked(
    of_chunk: _OfChunk, logits: Tensor, ids: Tensor, *, temperature: float, chunk_size: int | None
) -> tuple[Tensor, ...]:
    """Work on blocks of at most `chunk_size` tokens: views, where flattening a slice of logits would copy all of it."""
    if not temperature > 0:
        raise UserError(f"sampling.temperature: {temperature} is out of range; expected a number > 0")
    if chunk_size is None:
        chunk_size = max(_CHUNK_ENTRIES // logits.shape[-1], 1)
    recomputed = torch.is_grad_enabled() and logits.requires_grad and ids.numel() > chunk_size
    bands = []
    for band, band_ids in zip(logits.split(chunk_size), ids.split(chunk_size), strict=True):
        columns = max(chunk_size // max(len(band_ids), 1), 1)
        blocks = zip(band.split(columns, dim=1), band_ids.split(columns, dim=1), strict=True)
        # recomputed in backward: the float32 softmax of one block at a time is what lives
        parts = [
            checkpoint(of_chunk, block, chosen, temperature, use_reentrant=False, preserve_rng_state=False)
            if recomputed
            else of_chunk(block, chosen, temperature)
            for block, chosen in blocks
        ]
        bands.append([torch.cat(column, dim=1) for column in zip(*parts, strict=True)])
    return tuple(torch.cat(column) for column in zip(*bands, strict=True))


def _log_probs_of_chunk(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return (_log_softmax(logits, temperature).gather(-1, ids[..., None]).squeeze(-1),)


def _both_of_chunk(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    log_softmax = _log_softmax(logits, temperature)
    return log_softmax.gather(-1, ids[..., None]).squeeze(-1), _entropy(log_softmax)


def _both_of_chunk_detached(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    log_softmax = _log_softmax(logits, temperature)
    return log_softmax.gather(-1, ids[..., None]).squeeze(-1), _entropy(log_softmax.detach())


def _entropy(log_softmax: Tensor) -> Tensor:
    # filled before the product: 0 * -inf is NaN, and so would be its gradient
    finite = log_softmax.masked_fill(log_softmax.isneginf(), 0.0)
    return -(log_softmax.exp() * finite).sum(dim=-1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return (precise / temperature).log_softmax(dim=-1)
