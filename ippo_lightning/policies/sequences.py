"""Prompt and response as one sequence, and the logits that each response token was sampled from."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError


class Sequences(NamedTuple):
    """The inputs of one forward pass, under transformers' names."""

    input_ids: Tensor
    """[rows, sequence] int64, first the prompt, then the response."""
    attention_mask: Tensor
    """[rows, sequence] int64, 1 on real tokens."""
    position_ids: Tensor
    """[rows, sequence] int64, counted over real tokens."""


def position_ids_of(mask: Tensor) -> Tensor:
    """Return the position of each token among the real tokens of its row; padding before them gets 0.

    Args:
        mask: [rows, sequence] bool.

    Returns:
        Positions, shape [rows, sequence], int64.
    """
    # One row per episode, never one broadcast row for all: some models sum gradients over a broadcast row, which would
    # mix the gradients of different episodes.
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def join(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    limit: int = sys.maxsize,
) -> Sequences:
    """Put each response behind its prompt.

    Args:
        prompt_ids: [rows, prompt_tokens] int64, padded on the left.
        prompt_mask: [rows, prompt_tokens] bool.
        response_ids: [rows, steps] int64, padded on the right.
        response_mask: [rows, steps] bool.
        limit: most tokens of a row.

    Raises:
        UserError: a row is longer; some models then change their position tables for all rows, without an error.
    """
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    # The width needs no transfer from the GPU, and a batch is at least as wide as its longest row.
    if mask.shape[1] > limit and int(mask.sum(dim=1).max()) > limit:
        raise UserError(
            f"policy: a row of {int(mask.sum(dim=1).max())} tokens exceeds the context of {limit}; shorten prompt or "
            "response"
        )
    return Sequences(
        input_ids=torch.cat([prompt_ids, response_ids], dim=1),
        attention_mask=mask.long(),
        position_ids=position_ids_of(mask),
    )


def states_before(every: Tensor, num_tokens: int) -> Tensor:
    """Return, for each response token, the result at the position before it.

    A causal model predicts token t at the position of token t - 1, and the first response token at the last token of
    the prompt. The position of the last response token predicts a token that was never sampled.

    Args:
        every: [rows, sequence, ...], at least the last num_tokens + 1 positions of the sequence.
        num_tokens: response tokens, padding included.

    Returns:
        Shape [rows, num_tokens, ...].
    """
    return every[:, -num_tokens - 1 : -1]


def without_padding(states: Tensor, sequences: Sequences) -> Tensor:
    """Return states with zeros in padding.

    What a model computes for padding reaches no loss. It would reach gradients if it is NaN: the gradient of a head's
    weight is a sum over all positions, and 0 * NaN is NaN.

    Args:
        states: [rows, positions, width], the last positions of the sequences.
        sequences: prompt and response.
    """
    is_padding = sequences.attention_mask[:, -states.shape[1] :] == 0
    return states.masked_fill(is_padding[..., None], 0.0)


@contextmanager
def head_without_padding(network: PreTrainedModel, sequences: Sequences) -> Iterator[None]:
    """Let the head of a model read zeros in padding; see `without_padding`.

    Args:
        network: a causal language model.
        sequences: of the forward passes of the block.
    """

    def blank(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        # A head may read something else than one state per position.
        fits = hidden.dim() == 3 and len(hidden) == len(sequences.input_ids)
        return (without_padding(hidden, sequences) if fits else hidden, *others)

    # First, so that whatever else listens to the head reads what the head reads.
    handle = network.get_output_embeddings().register_forward_pre_hook(blank, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def keeps_logits(network: PreTrainedModel) -> bool:
    """Return whether a model can run its head on the last positions only.

    Args:
        network: a causal language model.
    """
    return "logits_to_keep" in inspect.signature(network.forward).parameters


def response_logits(network: PreTrainedModel, sequences: Sequences, num_tokens: int) -> Tensor:
    """Return the logits that each response token was sampled from.

    The language-model head runs on these positions only, if the model supports that.

    Args:
        network: a causal language model.
        sequences: prompt and response.
        num_tokens: response tokens, padding included.

    Returns:
        Logits, shape [rows, steps, vocab].
    """
    call: Any = network
    # Logits of a long prompt would take [rows, prompt_tokens, vocab] of memory for nothing.
    limit = {"logits_to_keep": num_tokens + 1} if keeps_logits(network) else {}
    logits: Tensor = call(**sequences._asdict(), use_cache=False, **limit).logits
    return states_before(logits, num_tokens)
