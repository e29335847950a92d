"""A demonstration has the ids of its whole text, and what a tokenizer adds by itself is there once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from ippo_lightning.data import arithmetic_tokenizer, byte_tokenizer
from ippo_lightning.policies import encode_demonstrations, encode_prompts
from ippo_lightning.policies.text_ids import added_tokens
from tests.support.small_tokenizers import merging, metaspace

KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "one token per byte": byte_tokenizer,
    "words": arithmetic_tokenizer,
    "byte-level BPE": merging,
    "byte-level BPE with BOS": lambda: merging(adds="<s> $A"),
    "metaspace before the first word": metaspace,
    "metaspace before the first word, cut at spaces": lambda: metaspace(split=True),
    "metaspace before every piece": lambda: metaspace("always"),
    "metaspace with BOS": lambda: metaspace(adds="<s> $A"),
    "metaspace with BOS and EOS": lambda: metaspace(adds="<s> $A </s>"),
    "two tokens in front": lambda: metaspace(adds="<unk> <s> $A"),
    "EOS in front": lambda: metaspace(adds="</s> $A"),
    "a token behind that is not EOS": lambda: metaspace(adds="<s> $A <unk>"),
}
PAIRS = [("7+5?", "12"), ("7+5?", "#12"), ("7+5?", "+12"), ("7+5=", "12=12"), ("12?", "12;#12")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "response"), PAIRS)
def test_a_demonstration_has_the_ids_of_its_text_and_then_eos(kind: str, prompt: str, response: str) -> None:
    tokenizer = KINDS[kind]()
    encoded = encode_demonstrations(tokenizer, [prompt], [response], max_length=64)
    found = [*encoded.prompt_ids[0].tolist(), *encoded.response_ids[0].tolist()]
    expected = tokenizer(prompt + response)["input_ids"]
    eos = tokenizer.eos_token_id
    # one of these tokenizers ends every text with EOS itself
    assert found == (expected if expected[-1] == eos else [*expected, eos])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "response"), [*PAIRS, ("7+5=", "=12"), ("7+5? ", "12"), ("7+1", "2")])
def test_the_prompt_of_a_demonstration_is_what_sampling_continues_from(kind: str, prompt: str, response: str) -> None:
    tokenizer = KINDS[kind]()
    encoded = encode_demonstrations(tokenizer, [prompt], [response], max_length=64)
    assert encoded.prompt_ids.tolist() == encode_prompts(tokenizer, [prompt], max_length=64)[0].tolist()


@pytest.mark.parametrize(
    ("prompt", "response"), [("7+5=", "=12"), ("7+5? ", "12"), ("7+5?", "a12"), ("7+5?", " a"), ("7+1", "2")]
)
@pytest.mark.parametrize("kind", ["byte-level BPE", "metaspace before the first word", "metaspace before every piece"])
def test_a_token_over_the_boundary_changes_no_character(kind: str, prompt: str, response: str) -> None:
    tokenizer = KINDS[kind]()
    encoded = encode_demonstrations(tokenizer, [prompt], [response], max_length=64)
    ids = [*encoded.prompt_ids[0].tolist(), *encoded.response_ids[0].tolist()]
    assert tokenizer.decode(ids) == f"{prompt}{response}</s>"


@pytest.mark.parametrize(
    ("adds", "before", "after"),
    [
        (None, [], []),
        ("<s> $A", [1], []),
        ("$A </s>", [], [2]),
        ("<s> $A </s>", [1], [2]),
        ("<unk> <s> $A <pad>", [3, 1], [0]),
        ("<s> <s> $A </s> </s>", [1, 1], [2, 2]),
    ],
)
@pytest.mark.parametrize("make", [metaspace, merging])
def test_what_a_tokenizer_adds_is_read_off_its_texts(
    make: Callable[..., PreTrainedTokenizerFast], adds: str | None, before: list[int], after: list[int]
) -> None:
    assert added_tokens(make(adds=adds)) == (before, after)


@pytest.mark.parametrize("adds", ["<s> $A", "<unk> <s> $A", "</s> $A", "<pad> $A <unk>"])
def test_a_prompt_that_writes_its_beginning_out_gets_no_second_one(adds: str) -> None:
    tokenizer = merging(adds=adds)
    written = "".join(word for word in adds.partition("$A")[0].split())
    plain, twice = (encode_prompts(tokenizer, [text], max_length=64)[0].tolist() for text in ("1?", f"{written}1?"))
    assert plain == twice


def test_a_shipped_task_with_a_space_before_the_response_keeps_the_prompt_that_is_sampled_from() -> None:
    # "A: " + "12": in one text the space belongs to the number, but sampling continues from the space
    tokenizer = merging()
    encoded = encode_demonstrations(tokenizer, ["A: "], ["12"], max_length=64)
    assert tokenizer.convert_ids_to_tokens(encoded.prompt_ids[0].tolist()) == ["A", ":", "Ġ"]
    assert tokenizer.convert_ids_to_tokens(encoded.response_ids[0].tolist()) == ["12", "</s>"]


def test_a_prompt_that_writes_the_first_of_two_added_tokens_is_taken_as_it_is() -> None:
    tokenizer = merging(adds="<unk> <s> $A")
    ids, _ = encode_prompts(tokenizer, ["<unk>1?"], max_length=64)
    assert ids.tolist() == [tokenizer("<unk>1?", add_special_tokens=False)["input_ids"]]
