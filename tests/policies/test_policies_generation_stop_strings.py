"""A stop string ends a response with the token in which it is complete, whatever its tokens are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.policies.generation.stop_strings import StopStrings
from tests.support.small_tokenizers import merging, metaspace

STRINGS = ["12", "3*", "=1=", "\n"]


def by_definition(tokenizer: PreTrainedTokenizerFast, ids: list[int], strings: list[str]) -> int | None:
    """Try every beginning of the response, shortest first."""
    texts = (tokenizer.decode(ids[:length]) for length in range(1, len(ids) + 1))
    return next((length for length, text in enumerate(texts, start=1) if any(s in text for s in strings)), None)


@pytest.mark.parametrize("make", [merging, metaspace])
def test_the_end_is_the_first_beginning_that_contains_a_stop_string(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer, strings = make(), ["+1", "=5", " a", "é", "?a="]
    generator = torch.Generator().manual_seed(1)
    found = StopStrings(tokenizer, strings)
    lengths = set()
    for start in range(300):
        ids = torch.randint(4, len(tokenizer), (20,), generator=generator).tolist()
        if start % 2:  # among 260 tokens, a stop string of several is rare
            ids[start % 13 : start % 13 + 5] = tokenizer("?a=5é", add_special_tokens=False)["input_ids"]
        assert found.length(ids) == by_definition(tokenizer, ids, strings)
        lengths.add(found.length(ids))
    assert len(lengths) > 3  # both ends and responses without one


def test_a_stop_string_may_end_inside_a_token() -> None:
    tokenizer = merging()
    ids = tokenizer("7==1", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["7", "==", "1"]
    assert StopStrings(tokenizer, ["7="]).length(ids) == 2


@pytest.mark.parametrize("way", ["generate", "continuous", "in batches"])
def test_every_sampler_ends_at_a_stop_string_and_nothing_behind_it_counts(
    make_policy: Callable[..., CausalLMPolicy], way: str
) -> None:
    policy = make_policy("llama")
    settings = {"generate": {}, "continuous": {"sampler": "continuous"}, "in batches": {"batch_size": 16}}[way]
    torch.manual_seed(0)
    samples = policy.sample(
        *policy.text.encode_prompts(["7+12?", "1?"], max_length=32),
        SamplingSettings(num_responses=40, max_new_tokens=12, temperature=2.0, stop_strings=STRINGS, **settings),
    )
    ends = 0
    for ids, mask, truncated in zip(*samples[:3], strict=True):
        kept = ids[mask].tolist()
        length = by_definition(policy.tokenizer, kept, STRINGS)
        assert length in (None, len(kept))
        assert bool(truncated) == (length is None and kept[-1] != 2)
        assert (ids[~mask] == 0).all()
        ends += length is not None
    assert 10 < ends < 80


def test_greedy_responses_are_those_of_transformers_own_stop_strings(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    policy = make_policy("llama")
    prompts = policy.text.encode_prompts(["7+12?", "3*4-5?"], max_length=32)
    free = policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=12, greedy=True))
    text = policy.tokenizer.decode(free.response_ids[0][free.response_mask[0]])
    stop = text[1:3]
    settings = SamplingSettings(num_responses=1, max_new_tokens=12, greedy=True, stop_strings=[stop])
    samples = policy.sample(*prompts, settings)
    config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0, stop_strings=[stop])
    policy.tokenizer.add_tokens(list("def"))  # transformers' search decodes "abcdef" first
    for row, (ids, mask) in enumerate(zip(*prompts, strict=True)):
        alone = ids[mask][None]
        expected = policy.language_model.generate(alone, generation_config=config, tokenizer=policy.tokenizer)
        kept = samples.response_ids[row][samples.response_mask[row]]
        assert kept.tolist() == expected[0, alone.shape[1] :].tolist()
    assert samples.response_mask[0].sum() < free.response_mask[0].sum()


def test_a_stop_string_that_begins_in_the_prompt_does_not_count(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    prompts = policy.text.encode_prompts(["7+12?"], max_length=32)
    numbers = {"num_responses": 1, "max_new_tokens": 6, "greedy": True}
    free = policy.sample(*prompts, SamplingSettings(**numbers)).response_ids
    first = policy.tokenizer.decode(free[0, :1])
    found = policy.sample(*prompts, SamplingSettings(**numbers, stop_strings=[f"?{first}"])).response_ids
    assert torch.equal(found, free)
