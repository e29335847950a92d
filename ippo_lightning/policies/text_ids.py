"""One text to token ids: what a tokenizer adds by itself comes once, and a response is cut as in its whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

_PROBES = ("0", "a", "1+1")
"""Texts whose ids show what a tokenizer adds around any text; none of them is special to a tokenizer."""
_ANCHORS = ("\n", ".", "?", "0", "a")
"""Texts that a response is tokenized behind if its own prompt does not end where a token ends."""


class AddedTokens(NamedTuple):
    """Ids that a tokenizer puts around each text by itself."""

    before: list[int]
    """In front: BOS for most tokenizers; other tokenizers use another token, or several."""
    after: list[int]
    """Behind: EOS for most tokenizers that add one."""


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text without what the tokenizer adds by itself.

    Args:
        tokenizer: any.
        text: special tokens in it are converted to their ids.
    """
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> AddedTokens:
    """Return what the tokenizer adds around a text by itself.

    It is read off texts and not off names such as `bos_token`: a tokenizer may have a BOS that it does not add, or add
    a token that is called neither BOS nor EOS.

    Args:
        tokenizer: any.
    """
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for probe in _PROBES:
        full, plain = list(tokenizer(probe)["input_ids"]), plain_tokens(tokenizer, probe)
        ends = [(start, start + len(plain)) for start in range(len(full) - len(plain) + 1)]
        fitting = {(tuple(full[:start]), tuple(full[end:])) for start, end in ends if full[start:end] == plain}
        # One probe alone may fit at two places, for instance if the unknown token is also added in front.
        found = fitting if found is None else found & fitting or found
    before, after = min(found or {((), ())})
    return AddedTokens(list(before), list(after))


def beginning_with(before: Sequence[int], ids: list[int]) -> list[int]:
    """Return ids that begin with what the tokenizer adds in front, exactly once.

    Args:
        before: see `AddedTokens`.
        ids: of a text, which may write some of it out.
    """
    before = list(before)
    if not before or ids[:1] == before[:1]:
        # A second BOS would put the prompt outside of what the model saw in training.
        return ids
    written = next((size for size in range(len(before), 0, -1) if ids[:size] == before[-size:]), 0)
    return before[: len(before) - written] + ids


def response_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and those of the response behind it; nothing is added around them.

    The prompt's ids are those of the prompt alone, because sampling continues from them. The response's ids are those
    it has inside the whole text: alone, many tokenizers would begin it with a space of its own. If a token of the whole
    text reaches over the boundary, no split gives both, and the response is tokenized as the continuation of a text
    that ends with a token.

    Args:
        tokenizer: any.
        prompt: not empty.
        response: what follows it.
    """
    start, whole = plain_tokens(tokenizer, prompt), plain_tokens(tokenizer, prompt + response)
    if whole[: len(start)] == start:
        return start, whole[len(start) :]
    text = _decoded(tokenizer, whole)
    alone = plain_tokens(tokenizer, response)
    if _decoded(tokenizer, start + alone) == text:
        return start, alone
    for anchor in _ANCHORS:
        leading, joint = plain_tokens(tokenizer, anchor), plain_tokens(tokenizer, anchor + response)
        tail = joint[len(leading) :]
        if joint[: len(leading)] == leading and _decoded(tokenizer, start + tail) == text:
            return start, tail
    # The tokenizer rewrites the end of the prompt: only the text's own tokens are left, split where the two agree.
    agreed = next((place for place, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
    return whole[:agreed], whole[agreed:]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
