"""Log-probs and entropy of tokens, without a second copy of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ippo_lightning.errors import UserError
from ippo_lightning.maths.shapes import StepFloats, StepIds, VocabFloats


def token_log_probs(
    *, logits: VocabFloats, ids: StepIds, temperature: float, chunk_size: int | None = None
) -> StepFloats:
    """Return log softmax(logits / temperature) at the given ids.

    Args:
        logits: shape [rows, steps, vocab], float; the logits at a position predict the id at that position.
        ids: shape [rows, steps], int64.
        temperature: > 0.
        chunk_size: tokens per block. Besides `logits`, only float32 copies of one block's logits are in memory, also
            if `logits` is a slice of a longer tensor. None takes as many tokens as make a block of 64 MiB.

    Returns:
        Nats, shape [rows, steps], float32 (float64 for float64 logits).

    Raises:
        UserError: `temperature` is not above 0.
    """
    return _chunked(_log_probs_of_chunk, logits, ids, temperature=temperature, chunk_size=chunk_size)[0]


def token_log_probs_and_entropy(
    *,
    logits: VocabFloats,
    ids: StepIds,
    temperature: float,
    chunk_size: int | None = None,
    detach_entropy: bool = False,
) -> tuple[StepFloats, StepFloats]:
    """Return the log-probs of `token_log_probs`, and the entropy of the distribution at each position.

    H = -sum_v p_v log p_v. A forbidden token has the logit -inf and adds nothing.

    Args:
        logits: shape [rows, steps, vocab], float.
        ids: shape [rows, steps], int64.
        temperature: > 0.
        chunk_size: see `token_log_probs`.
        detach_entropy: True lets no gradient flow through the entropy, which is then only for the log.

    Returns:
        Log-probs and entropy, nats, each [rows, steps].

    Raises:
        UserError: `temperature` is not above 0.
    """
    of_chunk = _both_of_chunk_detached if detach_entropy else _both_of_chunk
    log_probs, entropy = _chunked(of_chunk, logits, ids, temperature=temperature, chunk_size=chunk_size)
    return log_probs, entropy


_CHUNK_ENTRIES = 2**24  # of float32: 64 MiB
_OfChunk = Callable[[Tensor, Tensor, float], tuple[Tensor, ...]]


def _chunked(
    of_chunk: _OfChunk, logits: Tensor, ids: Tensor, *, temperature: float, chunk_size: int | None
) -> tuple[Tensor, ...]:
    """Apply `of_chunk` to blocks of at most `chunk_size` tokens and join the results."""
    if not temperature > 0:
        raise UserError(f"temperature: {temperature} is out of range; expected a number > 0")
    if chunk_size is None:
        chunk_size = max(_CHUNK_ENTRIES // logits.shape[-1], 1)
    # With one block there is nothing to save: its softmax is in memory during backward either way.
    recomputed = torch.is_grad_enabled() and logits.requires_grad and ids.numel() > chunk_size
    bands = []
    # `split` twice gives views. Flattening rows and steps would copy all logits if they are a slice of a longer tensor.
    for band, band_ids in zip(logits.split(chunk_size), ids.split(chunk_size), strict=True):
        columns = max(chunk_size // max(len(band_ids), 1), 1)
        blocks = zip(band.split(columns, dim=1), band_ids.split(columns, dim=1), strict=True)
        # Recomputed in backward, so that the float32 softmax of only one block exists at a time. There is no dropout in
        # a block, so the state of the random generator need not be saved.
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
    forbidden = log_softmax.isneginf()
    if not (torch.is_grad_enabled() and log_softmax.requires_grad):
        # Without a gradient, one copy of the block serves for all steps. Filled after the product: 0 * -inf is NaN.
        return -log_softmax.exp().mul_(log_softmax).masked_fill_(forbidden, 0.0).sum(dim=-1)
    # Filled before the product: 0 * -inf is NaN, and so is its gradient.
    return -(log_softmax.exp() * log_softmax.masked_fill(forbidden, 0.0)).sum(dim=-1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # A bfloat16 softmax over a vocabulary has errors as large as the differences between two policies.
    precise = logits if logits.dtype == torch.float64 else logits.float()
    # A division by 1 changes nothing, and would be one more copy of the block, in the backward too.
    return (precise if temperature == 1.0 else precise / temperature).log_softmax(dim=-1)
