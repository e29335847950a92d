"""Texts that end a response, found in what the ids decode to: a text may be several tokens, or end inside one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

_MORE = 4
"""Some tokens decode to another text at the beginning than behind others."""


class StopStrings:
    """Finds where a response contains one of some texts for the first time.

    Only the response is read: a text that begins in the prompt does not count.

    Args:
        tokenizer: of the policy.
        texts: none of them empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = tuple(texts)
        self.longest = max(len(text.encode()) for text in texts) + _MORE
        """Most tokens that a stop string reaches over, and a few more."""

    def is_in(self, ids: Sequence[int]) -> bool:
        """Return whether the ids decode to a text that contains a stop string."""
        # Special tokens are decoded too: a stop string may be the text of one, or stand behind one.
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self.texts)

    def length(self, ids: Sequence[int]) -> int | None:
        """Return how many tokens there are up to the one that completes a stop string, or None.

        Args:
            ids: of one response.
        """
        if not self.is_in(ids):
            return None
        # Once complete, a stop string stays in every longer piece, so the first one is found by halving.
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.is_in(ids[:middle]) else (middle + 1, high)
        return low

    def end(self, response_ids: Tensor, response_mask: Tensor, truncated: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and truncation of responses that end with a stop string, or before it with a stop token.

        Args:
            response_ids: [rows, steps] int64.
            response_mask: [rows, steps] bool, True up to the first stop token.
            truncated: [rows] bool, True for a response without a stop token.
        """
        mask, truncated = response_mask.clone(), truncated.clone()
        for row, (ids, counted) in enumerate(zip(response_ids, response_mask, strict=True)):
            length = self.length(ids[counted].tolist())
            if length is not None:
                mask[row, length:] = False
                truncated[row] = False
        return mask, truncated


class StopStringCriteria(StoppingCriteria):
    """Ends rows of transformers' `generate` once their response contains a stop string.

    Args:
        strings: what to look for.
        prompt_tokens: width of the prompts, padding included.
    """

    def __init__(self, strings: StopStrings, prompt_tokens: int) -> None:
        self.strings = strings
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Return which rows are done, [rows] bool."""
        responses = input_ids[:, self.prompt_tokens :].tolist()
        # The last tokens first, because all of them in each step would cost the square of the length.
        recent = self.strings.longest
        found = [self.strings.is_in(ids[-recent:]) and self.strings.is_in(ids) for ids in responses]
        return torch.tensor(found, device=input_ids.device)


def stop_strings_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | None) -> StopStrings | None:
    """Return what finds these texts, or None if there is none.

    Args:
        tokenizer: of the policy.
        texts: the user's.
    """
    return StopStrings(tokenizer, texts) if texts else None
