"""Text to token ids and masks, and ids to text: prompts are padded on the left, responses on the right.

The tokenizer's own padding is never used, so its `padding_side` has no effect. Masks come from lengths: a
real EOS counts also if the pad token is the EOS token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ippo_lightning.errors import UserError, require_choice
from ippo_lightning.policies.chat import demonstration_texts, messages_of, prompt_text
from ippo_lightning.policies.text_ids import AddedTokens, added_tokens, beginning_with, plain_tokens, response_tokens
from ippo_lightning.tasks import Conversation, Message, messages_fault


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


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a policy reads and writes text: its tokenizer and everything that decides about ids.

    Args:
        tokenizer: with an EOS token.
        eos_ids: more ids that end a response, those of the model's generation config.
        embedding_rows: ids from this number on have no embedding; None for no check.
        chat_template: prompts are messages, written by the tokenizer's chat template.
        system_prompt: the system message of prompts without one; None for the template's default, if it has one.
        special_tokens: `strip` leaves all special tokens out of responses as text; `keep` leaves out EOS, BOS and
            padding only, so that graders and rewards see tags such as `<think>`.

    Raises:
        UserError: no EOS token, or settings that contradict each other.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...] = ()
    embedding_rows: int | None = None
    chat_template: bool = False
    system_prompt: str | None = None
    special_tokens: Literal["strip", "keep"] = "strip"

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer)
        require_choice("policy.special_tokens", self.special_tokens, ("strip", "keep"))
        if self.system_prompt is not None and not self.chat_template:
            raise UserError("policy.system_prompt: has no effect without a template; set policy.chat_template: true")

    @property
    def end_ids(self) -> list[int]:
        """Ids that end a response: EOS of the tokenizer, then those of the model."""
        return list(dict.fromkeys([int(self.tokenizer.eos_token_id), *self.eos_ids]))

    def prompt_row(self, prompt: str, name: str) -> list[int]:
        """Return the ids of one prompt, without padding.

        Args:
            prompt: a text or a `Conversation`.
            name: of the prompt in messages.

        Raises:
            UserError: the prompt is empty, or an id has no embedding.
        """
        if self.chat_template:
            # What a template writes is complete: the tokenizer adds nothing.
            ids = plain_tokens(self.tokenizer, prompt_text(self.tokenizer, self._messages(prompt, name)))
        else:
            self._refuse_messages(prompt, name)
            ids = beginning_with(self._added.before, plain_tokens(self.tokenizer, prompt))
        self._check_prompt(prompt, ids, name)
        return ids

    def demonstration_row(self, prompt: str, response: str, name: str, prompt_name: str) -> tuple[list[int], list[int]]:
        """Return the ids of one prompt and its response with its end, without padding.

        Args:
            prompt: a text or a `Conversation`.
            response: its text.
            name: of the response in messages.
            prompt_name: of the prompt in messages.

        Raises:
            UserError: a text is empty, or an id has no embedding.
        """
        if self.chat_template:
            texts = demonstration_texts(self.tokenizer, self._messages(prompt, prompt_name), response)
            start, ids = response_tokens(self.tokenizer, *texts)
        else:
            self._refuse_messages(prompt, prompt_name)
            start, ids = response_tokens(self.tokenizer, prompt, response)
            start = beginning_with(self._added.before, start)
        self._check_prompt(prompt, start, prompt_name)
        if not response or not ids:
            raise UserError(f"{name}: empty; a demonstration needs at least one token before EOS")
        ids = self._cut_at_end(ids) if self.chat_template else self._with_end(ids)
        self._check_ids(ids, name)
        return start, ids

    def decode(self, response_ids: Tensor, response_mask: Tensor) -> list[str]:
        """Return responses as text for rewards, graders and reports.

        Args:
            response_ids: [rows, steps] int64.
            response_mask: [rows, steps] bool.
        """
        # By the mask: the pad token may be a token that the policy has sampled, for example EOS.
        rows = [ids[mask].tolist() for ids, mask in zip(response_ids, response_mask, strict=True)]
        if self.special_tokens == "keep":
            control = {*self.end_ids, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id}
            rows = [[token for token in row if token not in control] for row in rows]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=self.special_tokens == "strip")
        return texts

    @cached_property
    def _added(self) -> AddedTokens:
        return added_tokens(self.tokenizer)

    def _with_end(self, ids: list[int]) -> list[int]:
        """Return a response's ids with what the tokenizer adds behind a text, and with an EOS, each once."""
        # Compared as ids, because a tokenizer converts an EOS that is written out to its id.
        ends, after = set(self.end_ids), self._added.after
        if ids[-1] in ends:
            return ids
        if after and ids[-len(after) :] != after:
            ids = [*ids, *after]
        return ids if ids[-1] in ends else [*ids, self.end_ids[0]]

    def _cut_at_end(self, ids: list[int]) -> list[int]:
        """Return a turn's ids up to its first EOS: what a template writes behind it is never sampled."""
        ends = set(self.end_ids)
        place = next((place for place, token in enumerate(ids) if token in ends), None)
        return [*ids, self.end_ids[0]] if place is None else ids[: place + 1]

    def _messages(self, prompt: str, name: str) -> list[Message]:
        fault = messages_fault(prompt.messages) if isinstance(prompt, Conversation) else None
        if fault is not None:
            raise UserError(f"{name}: messages {fault}")
        return messages_of(prompt, self.system_prompt)

    @staticmethod
    def _refuse_messages(prompt: str, name: str) -> None:
        if isinstance(prompt, Conversation):
            raise UserError(f"{name}: consists of messages; set policy.chat_template: true")

    def _check_prompt(self, prompt: str, ids: list[int], name: str) -> None:
        if not prompt or not ids:
            raise UserError(f"{name}: empty; give at least one token to answer")
        self._check_ids(ids, name)

    def _check_ids(self, ids: list[int], name: str) -> None:
        if self.embedding_rows is None or max(ids) < self.embedding_rows:
            return
        worst = max(ids)
        token = self.tokenizer.convert_ids_to_tokens(worst)
        raise UserError(
            f"{name}: {token!r} has the id {worst}, and the model's embedding has {self.embedding_rows} rows; leave "
            "the token out, or give the tokenizer that belongs to the model"
        )

    def encode_prompts(self, prompts: Sequence[str], *, max_length: int) -> tuple[Tensor, Tensor]:
        """Convert prompts to ids, padded on the left; see `encode_prompts`."""
        if not prompts:
            raise UserError("prompts: none; give at least one")
        rows = [self.prompt_row(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]
        _check_lengths([len(row) for row in rows], max_length)
        return _pad(rows, pad_id=pad_id_of(self.tokenizer), left=True)

    def encode_demonstrations(
        self, prompts: Sequence[str], responses: Sequence[str], *, max_length: int
    ) -> EncodedResponses:
        """Convert prompts and written responses to ids; see `encode_demonstrations`."""
        if len(prompts) != len(responses):
            raise UserError(f"responses: {len(responses)} for {len(prompts)} prompts; give one response per prompt")
        if not prompts:
            raise UserError("prompts: none; give at least one")
        rows = [
            self.demonstration_row(prompt, response, f"responses[{index}]", f"prompts[{index}]")
            for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        _check_lengths([len(prompt) for prompt, _ in rows], max_length)
        for index, (prompt_ids, ids) in enumerate(rows):
            if len(prompt_ids) + len(ids) > max_length:
                raise UserError(
                    f"responses[{index}]: {len(prompt_ids)} prompt and {len(ids)} response tokens, max_length is "
                    f"{max_length}; shorten the text or raise the limit"
                )
        pad_id = pad_id_of(self.tokenizer)
        return EncodedResponses(
            *_pad([prompt for prompt, _ in rows], pad_id=pad_id, left=True),
            *_pad([response for _, response in rows], pad_id=pad_id, left=False),
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot end a response.

    Args:
        tokenizer: the policy's tokenizer.

    Raises:
        UserError: it has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer.eos_token: none; set the token that ends a response")


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills rows: the pad token's, or that of EOS if there is none.

    Masks come from lengths, so no result depends on this id.

    Args:
        tokenizer: with an EOS token.
    """
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_length: int
) -> tuple[Tensor, Tensor]:
    """Convert prompts to ids, padded on the left.

    What the tokenizer adds in front of a text by itself (BOS, for most) is there exactly once, also if the text writes
    it out. What it adds behind a text is left out, because the prompt is continued.

    Args:
        tokenizer: with an EOS token.
        prompts: at least one text.
        max_length: longest prompt allowed, in tokens.

    Returns:
        Ids [rows, prompt_tokens] int64 and mask [rows, prompt_tokens] bool, True on real tokens.

    Raises:
        UserError: there is no prompt, a prompt is empty or longer than `max_length`, or there is no EOS token.
    """
    return TextFormat(tokenizer=tokenizer).encode_prompts(prompts, max_length=max_length)


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], *, max_length: int
) -> EncodedResponses:
    """Convert prompts and written responses to ids; each response ends in EOS.

    The ids are those of prompt and response as one text, and the prompt's are those that sampling continues from; see
    `response_tokens`.

    Args:
        tokenizer: with an EOS token.
        prompts: one per response.
        responses: without special tokens; an EOS written out at the end is not added again.
        max_length: longest prompt and response together, in tokens, EOS included.

    Returns:
        Ids and masks, prompts padded on the left and responses on the right.

    Raises:
        UserError: the numbers of prompts and responses differ, or a text is empty or too long.
    """
    return TextFormat(tokenizer=tokenizer).encode_demonstrations(prompts, responses, max_length=max_length)


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[str] | None, eos_ids: Sequence[int] = ()
) -> list[int]:
    """Return the ids that end a response: every EOS first, then the user's stop tokens.

    Args:
        tokenizer: with an EOS token.
        stop_tokens: strings that are one token each.
        eos_ids: of the model, beside the tokenizer's own.

    Raises:
        UserError: a string is not exactly one token.
    """
    # EOS always ends a response, also with the user's own stop tokens.
    ids = TextFormat(tokenizer=tokenizer, eos_ids=tuple(eos_ids)).end_ids
    vocabulary = tokenizer.get_vocab()
    for text in stop_tokens or ():
        # The vocabulary comes first: many tokenizers put a space token before a text that stands alone.
        encoded = [vocabulary[text]] if text in vocabulary else plain_tokens(tokenizer, text)
        # If the unknown token ended responses, every word outside the vocabulary would.
        if len(encoded) != 1 or encoded[0] == tokenizer.unk_token_id:
            raise UserError(
                f"sampling.stop_tokens: {text!r} is {len(encoded)} tokens {encoded}; use single tokens, or "
                "sampling.stop_strings"
            )
        ids.extend(token for token in encoded if token not in ids)
    return ids


def _check_lengths(lengths: Sequence[int], max_length: int) -> None:
    for index, length in enumerate(lengths):
        if length > max_length:
            raise UserError(
                f"prompts[{index}]: {length} tokens, max_length is {max_length}; shorten the text or raise the limit"
            )


def _pad(rows: list[list[int]], *, pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    padding = [[pad_id] * (width - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)]
    columns = torch.arange(width)
    mask = columns >= width - lengths[:, None] if left else columns < lengths[:, None]
    return torch.tensor(padded, dtype=torch.long), mask
