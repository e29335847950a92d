"""Ids and masks come from lengths; the tokenizer's own padding has no effect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import encode_demonstrations, encode_prompts
from ippo_lightning.policies.tokenization import check_tokenizer, stop_token_ids


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [tokenizer.get_vocab()[character] for character in text]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_the_left_for_every_padding_side_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, side: str
) -> None:
    tokenizer.padding_side = side
    ids, mask = encode_prompts(tokenizer, ["1?", "12?"], max_length=10)
    assert ids.tolist() == [[0, *ids_of(tokenizer, "1?")], ids_of(tokenizer, "12?")]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert tokenizer.padding_side == side


def test_responses_are_padded_on_the_right_and_end_in_one_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_demonstrations(tokenizer, ["1?", "2?"], ["12", "3</s>"], max_length=10)
    assert encoded.response_ids.tolist() == [[*ids_of(tokenizer, "12"), 2], [*ids_of(tokenizer, "3"), 2, 0]]
    assert encoded.response_mask.tolist() == [[True, True, True], [True, True, False]]


def test_the_real_eos_counts_also_if_it_is_the_pad_token(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer(pad_token="</s>")
    encoded = encode_demonstrations(tokenizer, ["1?", "2?"], ["12", "3"], max_length=10)
    assert encoded.response_ids[1].tolist()[1:] == [2, 2]
    assert encoded.response_mask.tolist() == [[True, True, True], [True, True, False]]


def test_a_pad_token_inside_a_prompt_counts(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    _, mask = encode_prompts(make_tokenizer(pad_token="</s>"), ["1</s>?", "1</s>2?"], max_length=10)
    assert mask.tolist() == [[False, True, True, True], [True, True, True, True]]


@pytest.fixture
def begins_and_ends(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("prompt", ["1?", "<s>1?"])
def test_a_prompt_begins_with_one_bos_and_does_not_end_in_eos(
    begins_and_ends: PreTrainedTokenizerFast, prompt: str
) -> None:
    ids, _ = encode_prompts(begins_and_ends, [prompt], max_length=10)
    assert ids.tolist() == [[1, *ids_of(begins_and_ends, "1?")]]


def test_no_bos_is_added_if_the_tokenizer_adds_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_prompts(tokenizer, ["1?"], max_length=2)[0].tolist() == [ids_of(tokenizer, "1?")]


def test_a_response_never_begins_with_bos(begins_and_ends: PreTrainedTokenizerFast) -> None:
    encoded = encode_demonstrations(begins_and_ends, ["1?"], ["2"], max_length=10)
    assert encoded.response_ids.tolist() == [[*ids_of(begins_and_ends, "2"), 2]]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["1?", "1+2+3?"], ["prompts[1]", "6 tokens", "max_length is 5"]),
        (["1?", ""], ["prompts[1]", "empty"]),
        ([], ["prompts: none"]),
    ],
)
def test_an_unusable_prompt_is_named(tokenizer: PreTrainedTokenizerFast, prompts: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        encode_prompts(tokenizer, prompts, max_length=5)
    assert all(word in str(caught.value) for word in words)


def test_the_longest_text_that_fits_is_accepted(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_prompts(tokenizer, ["1+2?"], max_length=4)[0].shape == (1, 4)
    assert encode_demonstrations(tokenizer, ["1?"], ["12"], max_length=5).response_ids.shape == (1, 3)


@pytest.mark.parametrize(
    ("responses", "words"),
    [
        (["123"], ["responses[0]", "2 prompt and 4 response tokens", "max_length is 5"]),
        ([""], ["responses[0]", "empty"]),
        (["1", "2"], ["responses: 2 for 1 prompts"]),
    ],
)
def test_an_unusable_response_is_named(
    tokenizer: PreTrainedTokenizerFast, responses: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        encode_demonstrations(tokenizer, ["1?"], responses, max_length=5)
    assert all(word in str(caught.value) for word in words)


def test_a_tokenizer_that_cannot_stop_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"tokenizer.eos_token: none"):
        check_tokenizer(tokenizer)


def test_stop_tokens_come_after_eos_and_appear_once(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = [2, *ids_of(tokenizer, "\n;")]
    assert stop_token_ids(tokenizer, ["\n", "</s>", ";"]) == expected
    assert stop_token_ids(tokenizer, None) == [2]


@pytest.mark.parametrize("text", ["12", "Q"])
def test_a_stop_string_that_is_not_one_token_is_refused(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    with pytest.raises(UserError, match=f"sampling.stop_tokens: '{text}'"):
        stop_token_ids(tokenizer, [text])
