"""Log-probs and entropy of tokens without a second copy of the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ippo_lightning.errors import UserError


def token_log_probs(*, logits: Tensor, ids: Tensor, temperature: float, chunk_size: int = 1024) -> Tensor:
    """Return log softmax(logits / temperature) at the given ids.

    Args:
        logits: shape [episodes, tokens, vocab], float; the row at a position predicts the id at that position.
        ids: shape [episodes, tokens], int64.
        temperature: > 0.
        chunk_size: tokens worked on at a time; their float32 copy of the logits is all that lives besides `logits`.

    Returns:
        Nats, shape [episodes, tokens], float32 (float64 for float64 logits).

    Raises:
        UserError: temperature <= 0.
    """
    return _chunked(logits, ids, temperature=temperature, chunk_size=chunk_size)[0]


def token_log_probs_and_entropy(
    *, logits: Tensor, ids: Tensor, temperature: float, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return log-probs as `token_log_probs` does, and the entropy of each position's distribution.

    H = -sum_v p_v log p_v.

    Args:
        logits: shape [episodes, tokens, vocab], float.
        ids: shape [episodes, tokens], int64.
        temperature: > 0.
        chunk_size: tokens worked on at a time.

    Returns:
        log-probs and entropy, nats, each [episodes, tokens].

    Raises:
        UserError: temperature <= 0.
    """
    return _chunked(logits, ids, temperature=temperature, chunk_size=chunk_size)


def _chunked(logits: Tensor, ids: Tensor, *, temperature: float, chunk_size: int) -> tuple[Tensor, Tensor]:
    if not temperature > 0:
        raise UserError(f"sampling.temperature: {temperature} is out of range; expected a number > 0")
    flat_logits, flat_ids = logits.reshape(-1, logits.shape[-1]), ids.reshape(-1)
    if len(flat_ids) <= chunk_size:
        parts = [_of_chunk(flat_logits, flat_ids, temperature)]
    else:
        # recomputed in backward: the float32 softmax of one chunk at a time is what lives
        parts = [
            checkpoint(_of_chunk, chunk, chosen, temperature, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled() and logits.requires_grad
            else _of_chunk(chunk, chosen, temperature)
            for chunk, chosen in zip(flat_logits.split(chunk_size), flat_ids.split(chunk_size), strict=True)
        ]
    log_probs, entropy = (torch.cat(column).view(ids.shape) for column in zip(*parts, strict=True))
    return log_probs, entropy


def _of_chunk(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    precise = logits.double() if logits.dtype == torch.float64 else logits.float()
    log_softmax = (precise / temperature).log_softmax(dim=-1)
    log_probs = log_softmax.gather(-1, ids[:, None]).squeeze(-1)
    # a forbidden token has probability 0 and log-prob -inf; it adds nothing
    summands = torch.where(log_softmax.isneginf(), torch.zeros_like(log_softmax), log_softmax.exp() * log_softmax)
    return log_probs, -summands.sum(dim=-1)
