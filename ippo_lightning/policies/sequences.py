"""Prompt and response as one sequence, and the logits each response token was drawn from."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Sequences(NamedTuple):
    """The inputs of one forward pass, under the names transformers gives them."""

    input_ids: Tensor
    """[rows, sequence] int64, prompt then response."""
    attention_mask: Tensor
    """[rows, sequence] int64, 1 on real tokens."""
    position_ids: Tensor
    """[rows, sequence] int64, counted over real tokens."""


def position_ids_of(mask: Tensor) -> Tensor:
    """Return the position of each token among the real tokens of its row; padding before them gets 0.

    Args:
        mask: [rows, sequence] bool.

    Returns:
        Positions, shape [rows, sequence], int64, one row an episode (some models sum gradients over a broadcast
        row, which would mix episodes).
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def join(prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor) -> Sequences:
    """Put each response behind its prompt.

    Args:
        prompt_ids: [rows, prompt_tokens] int64, padded on the left.
        prompt_mask: [rows, prompt_tokens] bool.
        response_ids: [rows, steps] int64, padded on the right.
        response_mask: [rows, steps] bool.
    """
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    return Sequences(
        input_ids=torch.cat([prompt_ids, response_ids], dim=1),
        attention_mask=mask.long(),
        position_ids=position_ids_of(mask),
    )


def states_before(every: Tensor, num_tokens: int) -> Tensor:
    """Cut out, for each response token, what was computed at the position before it.

    A causal model predicts token t where it reads token t - 1; the first response token is predicted at the last token
    of the prompt. The position of the last response token predicts nothing that was sampled.

    Args:
        every: [rows, sequence, ...], at least the last num_tokens + 1 positions of the sequence.
        num_tokens: response tokens, padding included.

    Returns:
        Shape [rows, num_tokens, ...].
    """
    return every[:, -num_tokens - 1 : -1]


def response_logits(network: PreTrainedModel, sequences: Sequences, num_tokens: int) -> Tensor:
    """Return the logits each response token was drawn from, computed for no other position where the model allows.

    Args:
        network: a causal language model.
        sequences: prompt and response.
        num_tokens: response tokens, padding included.

    Returns:
        Logits, shape [rows, steps, vocab].
    """
    call: Any = network
    takes_limit = "logits_to_keep" in inspect.signature(network.forward).parameters
    limit = {"logits_to_keep": num_tokens + 1} if takes_limit else {}
    logits: Tensor = call(**sequences._asdict(), use_cache=False, **limit).logits
    return states_before(logits, num_tokens)
