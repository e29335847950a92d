"""The text that a reward model reads: prompt and response by its own template and tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Conversation
from ippo_lightning.tasks.prompt_template import chat_template_text


class RewardText:
    """Encodes rows, and pads them on the right.

    Args:
        tokenizer: of the reward model.
        chat_template: see `RewardModel`.
        max_length: most tokens of a row.

    Raises:
        UserError: the tokenizer has no template, or the file does not exist.
    """

    def __init__(self, tokenizer: Any, chat_template: bool | str | None, *, max_length: int) -> None:
        self.tokenizer = copy.copy(tokenizer)
        # The end of a response decides about its reward more than the beginning of the prompt.
        self.tokenizer.truncation_side = "left"
        self.max_length = max_length
        self.has_template = _set_template(self.tokenizer, chat_template)
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        self._pad_id: int | None = None if pad is None or pad == eos else pad

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of each row, at least one, and how many rows were cut.

        Args:
            prompts: one per row.
            responses: one per row.

        Raises:
            UserError: the template refuses the messages of a prompt.
        """
        texts = [self._text(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        # What a template writes out, a tokenizer must not add again.
        special = not self.has_template
        full = self.tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        num_cut = sum(len(ids) > self.max_length for ids in full)
        if num_cut:
            options = {"truncation": True, "max_length": self.max_length}
            full = self.tokenizer(texts, add_special_tokens=special, **options)["input_ids"]
        fallback = self.tokenizer.eos_token_id or 0  # an empty text of a tokenizer without special tokens
        return [list(ids) or [fallback] for ids in full], num_cut

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
        """Return ids and mask, both [rows, tokens], int64, and the id of the padding.

        Args:
            rows: ids, at least one each.
        """
        pad_id = self._pad_id
        if pad_id is None:
            # Padding with EOS would make a decoder read its head's input before the EOS that a text ends with. Any id
            # will do that no row ends with, because the mask hides it.
            last = {row[-1] for row in rows}
            pad_id = next(number for number in range(len(last) + 1) if number not in last)
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, mask, pad_id

    def _text(self, prompt: str, response: str) -> str:
        own = prompt.messages if isinstance(prompt, Conversation) else ()
        if not self.has_template:
            return f"{prompt}{response}"
        messages = [
            *map(dict, own or [{"role": "user", "content": prompt}]),
            {"role": "assistant", "content": response},
        ]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # a template is a program, and may raise anything, for example for an unknown role
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"reward.chat_template: refuses a prompt; {type(error).__name__}: {reason}") from error
        assert isinstance(text, str)
        return text


def _set_template(tokenizer: Any, chat_template: bool | str | None) -> bool:
    """Set the template that the user chose, and return whether there is one."""
    if chat_template is None or isinstance(chat_template, bool):
        if chat_template is True and not tokenizer.chat_template:
            raise UserError(
                "reward.chat_template: true, and the tokenizer has no template; give a Jinja text or its file, or false"
            )
        return bool(tokenizer.chat_template) and chat_template is not False
    tokenizer.chat_template = chat_template_text(chat_template, field="reward.chat_template")
    return True
