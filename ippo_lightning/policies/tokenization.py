"""Text to token ids and masks: prompts are padded on the left, responses on the right.

The tokenizer's own padding is never used, so its `padding_side` has no effect. Masks come from lengths: a
real EOS counts also if the pad token is the EOS token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ippo_lightning.errors import UserError


class EncodedResponses(NamedTuple):
    """Prompts and the responses that follow them, ready for `CausalLMPolicy.forward`."""

    prompt_ids: Tensor
    """[rows, prompt_tokens] int64, padded on the left."""
    prompt_mask: Tensor
    """[rows, prompt_tokens] bool."""
    response_ids: Tensor
    """[rows, steps] int64, EOS included, padded on the right."""
    response_mask: Tensor
    """[rows, steps] bool."""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot pad or cannot end a response.

    Args:
        tokenizer: the policy's tokenizer.

    Raises:
        UserError: it has no pad token or no EOS token.
    """
    # No automatic choice: a new pad token needs a larger embedding, and the user should know which token is reused.
    if tokenizer.pad_token_id is None:
        raise UserError("tokenizer.pad_token: none; set one, for instance tokenizer.pad_token = tokenizer.unk_token")
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer.eos_token: none; set the token that ends a response")


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_length: int
) -> tuple[Tensor, Tensor]:
    """Convert prompts to ids, padded on the left.

    A beginning-of-sequence token is added only if the tokenizer adds one itself and the text does not begin with it
    already (chat templates write it out). An EOS that the tokenizer appends itself is removed.

    Args:
        tokenizer: with a pad token.
        prompts: at least one text.
        max_length: longest prompt allowed, in tokens.

    Returns:
        Ids [rows, prompt_tokens] int64 and mask [rows, prompt_tokens] bool, True on real tokens.

    Raises:
        UserError: there is no prompt, a prompt is empty or longer than `max_length`, or there is no pad token.
    """
    check_tokenizer(tokenizer)
    return _pad(_prompt_rows(tokenizer, prompts, max_length), pad_id=_pad_id(tokenizer), left=True)


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], *, max_length: int
) -> EncodedResponses:
    """Convert prompts and written responses to ids; each response ends in exactly one EOS.

    Args:
        tokenizer: with a pad and an EOS token.
        prompts: one per response.
        responses: without special tokens; an EOS written out at the end is not added again.
        max_length: longest prompt and response together, in tokens, EOS included.

    Returns:
        Ids and masks, prompts padded on the left and responses on the right.

    Raises:
        UserError: the numbers of prompts and responses differ, or a text is empty or too long.
    """
    check_tokenizer(tokenizer)
    if len(prompts) != len(responses):
        raise UserError(f"responses: {len(responses)} for {len(prompts)} prompts; give one response per prompt")
    # Prompt and response apart, as in a rollout: a joint text may be cut into other tokens where they meet.
    prompt_rows = _prompt_rows(tokenizer, prompts, max_length)
    response_rows = [_response_tokens(tokenizer, response, index) for index, response in enumerate(responses)]
    for index, (prompt, response) in enumerate(zip(prompt_rows, response_rows, strict=True)):
        if len(prompt) + len(response) > max_length:
            raise UserError(
                f"responses[{index}]: {len(prompt)} prompt and {len(response)} response tokens, max_length is "
                f"{max_length}; shorten the text or raise the limit"
            )
    pad_id = _pad_id(tokenizer)
    return EncodedResponses(
        *_pad(prompt_rows, pad_id=pad_id, left=True), *_pad(response_rows, pad_id=pad_id, left=False)
    )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[str] | None) -> list[int]:
    """Return the ids that end a response: EOS first, then the user's stop tokens.

    Args:
        tokenizer: with an EOS token.
        stop_tokens: strings that are one token each.

    Raises:
        UserError: a string is not exactly one token.
    """
    # EOS always ends a response, also with the user's own stop tokens.
    ids = [int(tokenizer.eos_token_id)]
    vocabulary = tokenizer.get_vocab()
    for text in stop_tokens or ():
        # The vocabulary comes first: many tokenizers put a space token before a text that stands alone.
        encoded = [vocabulary[text]] if text in vocabulary else _plain_tokens(tokenizer, text)
        # If the unknown token ended responses, every word outside the vocabulary would.
        if len(encoded) != 1 or encoded[0] == tokenizer.unk_token_id:
            raise UserError(f"sampling.stop_tokens: {text!r} is {len(encoded)} tokens {encoded}; use single tokens")
        ids.extend(token for token in encoded if token not in ids)
    return ids


def _prompt_rows(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int) -> list[list[int]]:
    if not prompts:
        raise UserError("prompts: none; give at least one")
    # One text at a time, so that the tokenizer has nothing to pad.
    rows = [_prompt_tokens(tokenizer, prompt) for prompt in prompts]
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if not prompt or not row:
            raise UserError(f"prompts[{index}]: empty; give at least one token to answer")
        if len(row) > max_length:
            raise UserError(
                f"prompts[{index}]: {len(row)} tokens, max_length is {max_length}; shorten the text or raise the limit"
            )
    return rows


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    # A second BOS would put the prompt outside of what the model saw in training.
    begins_itself = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    if begins_itself:
        return _plain_tokens(tokenizer, prompt)
    ids = list(tokenizer(prompt)["input_ids"])
    # A prompt that ends in EOS would tell the model that the text is over.
    if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        return ids[:-1]
    return ids


def _response_tokens(tokenizer: PreTrainedTokenizerBase, response: str, index: int) -> list[int]:
    ids = _plain_tokens(tokenizer, response)
    if not ids:
        raise UserError(f"responses[{index}]: empty; a demonstration needs at least one token before EOS")
    # Compared as ids, because a tokenizer converts an EOS that is written out to its id.
    eos_id = int(tokenizer.eos_token_id)
    return ids if ids[-1] == eos_id else [*ids, eos_id]


def _plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)


def _pad(rows: list[list[int]], *, pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    padding = [[pad_id] * (width - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)]
    columns = torch.arange(width)
    mask = columns >= width - lengths[:, None] if left else columns < lengths[:, None]
    return torch.tensor(padded, dtype=torch.long), mask
