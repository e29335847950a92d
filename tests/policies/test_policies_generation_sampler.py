"""Every sampler draws from the policy's own distribution, ends at the same tokens, and leaves no state behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache

from ippo_lightning.distributed import lockstep
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_prompts

TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?", "9?"]
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "static": {"cache": "static"},
    "in batches": {"batch_size": 2},
    "static, in batches": {"cache": "static", "batch_size": 3},
    "continuous": {"sampler": "continuous"},
    "continuous, in batches": {"sampler": "continuous", "batch_size": 4},
}
WAYS = [pytest.param(way, marks=pytest.mark.slow if "batches" in way else ()) for way in OTHER_WAYS]
"""Batches of the other samplers are looked at in the slow tests alone: each call of them takes a second."""


def encoded(policy: CausalLMPolicy) -> tuple[Tensor, Tensor]:
    return encode_prompts(policy.tokenizer, TEXTS, max_length=32)


@pytest.mark.parametrize(
    ("way", "architecture", "lora"),
    [
        *(pytest.param(*way.values, "llama", None, marks=way.marks) for way in WAYS),
        *((way, architecture, None) for way in ("static", "continuous") for architecture in ("gpt2", "qwen2")),
        *((way, "llama", LoraSettings(r=4)) for way in ("static", "continuous")),
    ],
)
def test_every_sampler_returns_the_same_greedy_responses(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    architecture: str,
    lora: LoraSettings | None,
    way: str,
) -> None:
    policy = make_policy(architecture, seed=1, lora=lora)
    if lora is not None:
        move_weights(policy)
    numbers = {"num_responses": 2, "max_new_tokens": 10, "greedy": True, "stop_tokens": [";"]}
    plain = policy.sample(*encoded(policy), SamplingSettings(**numbers))
    other = policy.sample(*encoded(policy), SamplingSettings(**numbers, **OTHER_WAYS[way]))
    assert torch.equal(other.response_mask, plain.response_mask)
    assert torch.equal(other.response_ids, plain.response_ids)
    assert torch.equal(other.truncated, plain.truncated)


def forwards_of(policy: CausalLMPolicy, **settings: Any) -> list[tuple[tuple[int, ...], str]]:
    """Sample, and return the shape of the ids and the kind of cache of each of the model's forwards."""
    seen: list[tuple[tuple[int, ...], str]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        # by its class: the name of the argument is another one in newer versions of transformers
        caches = [type(value).__name__ for value in kwargs.values() if isinstance(value, Cache)]
        seen.append((tuple(ids.shape), next(iter(caches), "none")))

    handle = policy.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        policy.sample(*encoded(policy), SamplingSettings(num_responses=2, max_new_tokens=4, **settings))
    finally:
        handle.remove()
    return seen


def test_every_setting_changes_the_forwards_of_the_model(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    plain = forwards_of(policy)
    assert {kind for _, kind in plain} == {"DynamicCache"}
    assert plain[0][0] == (10, 8)  # two responses to each of five prompts, padded to the longest
    assert {kind for _, kind in forwards_of(policy, cache="static")} == {"StaticCache"}
    # the shortest prompts come first, without the padding of the longest one
    first = [shape for shape, _ in forwards_of(policy, batch_size=4) if shape[1] > 1]
    assert [rows for rows, _ in first] == [4, 4, 2]
    assert [columns for _, columns in first] == sorted(columns for _, columns in first)
    assert first[0][1] < 8
    paged = forwards_of(policy, sampler="continuous")
    assert {shape[0] for shape, _ in paged} == {1}  # all requests in one packed row


@pytest.mark.parametrize("way", ["static", "in batches", "continuous"])
def test_draws_follow_the_distribution_at_its_temperature(make_policy: Callable[..., CausalLMPolicy], way: str) -> None:
    policy = make_policy("llama")
    prompt_ids, prompt_mask = (part[:1] for part in encoded(policy))
    number = 1000
    batch = {"batch_size": number // 2} if "batch_size" in OTHER_WAYS[way] else {}
    settings = SamplingSettings(num_responses=number, max_new_tokens=1, temperature=0.7, **{**OTHER_WAYS[way], **batch})
    torch.manual_seed(0)
    drawn = policy.sample(prompt_ids, prompt_mask, settings).response_ids[:, 0]
    with torch.no_grad():
        logits = policy.language_model(input_ids=prompt_ids, attention_mask=prompt_mask.long()).logits[0, -1]
    expected = number * (logits / 0.7).softmax(dim=-1)
    counts = torch.bincount(drawn, minlength=len(expected))
    often = expected > 5
    statistic = float(((counts - expected)[often].square() / expected[often]).sum())
    # chi-squared with that many degrees of freedom stays below mean + 4 standard deviations
    degrees = int(often.sum())
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5
    assert int(counts[~often].sum()) < float(expected[~often].sum()) + 4 * float(expected[~often].sum()) ** 0.5 + 1


@pytest.mark.parametrize("way", ["static", "in batches", pytest.param("continuous", marks=pytest.mark.slow)])
def test_the_same_random_stream_gives_the_same_responses_and_each_call_advances_it(
    make_policy: Callable[..., CausalLMPolicy], way: str
) -> None:
    policy = make_policy("llama")
    settings = SamplingSettings(num_responses=3, max_new_tokens=8, **OTHER_WAYS[way])
    torch.manual_seed(3)
    first, second = (policy.sample(*encoded(policy), settings).response_ids for _ in range(2))
    after = torch.rand(())
    torch.manual_seed(3)
    again, other = (policy.sample(*encoded(policy), settings).response_ids for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(second, other)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert torch.equal(after, torch.rand(()))


def test_continuous_batching_does_not_change_the_model(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    network = policy.language_model
    before = (network.config._attn_implementation, network.config.use_cache, network.generation_config.to_dict())
    policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="continuous"))
    assert (network.config._attn_implementation, network.config.use_cache) == before[:2]
    assert network.generation_config.to_dict() == before[2]
    assert policy.training
    assert all(module.training for module in network.modules())


def test_an_error_of_continuous_batching_is_reported(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("llama")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory left for pages")

    monkeypatch.setattr(policy.language_model.model.layers[0], "forward", broken)
    with pytest.raises(UserError, match=r"sampling.sampler: continuous batching (failed|ended)"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="continuous"))
    assert policy.training


def test_samplers_are_kept_and_belong_to_no_module_state_or_copy(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    policy = make_policy("llama")
    modules, state = len(list(policy.modules())), list(policy.state_dict())
    first = policy._sampler(SamplingSettings(max_new_tokens=4))
    assert policy._sampler(SamplingSettings(max_new_tokens=8, greedy=True)) is first
    assert policy._sampler(SamplingSettings(sampler="continuous")) is not first
    assert (len(list(policy.modules())), list(policy.state_dict())) == (modules, state)
    twin = copy.deepcopy(policy)
    assert twin._samplers == {}
    assert twin._sampler(SamplingSettings()).network is twin.language_model
    policy.model = make_policy("llama", seed=9).model
    assert policy._sampler(SamplingSettings()).network is policy.language_model


@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_each_prompt_gets_as_many_responses_as_its_count(make_policy: Callable[..., CausalLMPolicy], way: str) -> None:
    policy = make_policy("llama", seed=1)
    prompts = encoded(policy)
    counts = torch.tensor([0, 3, 1, 0, 2])
    numbers = {"max_new_tokens": 10, "greedy": True, "stop_tokens": [";"]}
    one_each = policy.sample(*prompts, SamplingSettings(num_responses=1, **numbers))
    settings = SamplingSettings(num_responses=7, **numbers, **OTHER_WAYS.get(way, {}))
    found = policy.sample(*prompts, settings, counts)
    expected = [row for row, count in enumerate(counts.tolist()) for _ in range(count)]
    texts = [ids[mask].tolist() for ids, mask in zip(one_each.response_ids, one_each.response_mask, strict=True)]
    assert len({tuple(text) for text in texts}) > 2  # otherwise a wrong order would not be noticed
    assert [ids[mask].tolist() for ids, mask in zip(found.response_ids, found.response_mask, strict=True)] == [
        texts[row] for row in expected
    ]


@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_equal_counts_draw_the_same_as_no_counts(make_policy: Callable[..., CausalLMPolicy], way: str) -> None:
    policy = make_policy("llama")
    settings = SamplingSettings(num_responses=3, max_new_tokens=6, **OTHER_WAYS.get(way, {}))
    drawn = []
    for counts in (None, torch.full((5,), 3)):
        torch.manual_seed(4)
        drawn.append(policy.sample(*encoded(policy), settings, counts))
    assert all(torch.equal(one, other) for one, other in zip(*(samples[:3] for samples in drawn), strict=True))


def test_a_prompt_without_responses_may_be_longer_than_the_context(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("gpt2")
    settings = SamplingSettings(num_responses=1, max_new_tokens=57)
    with pytest.raises(UserError, match="57 after a prompt of 8 tokens"):
        policy.sample(*encoded(policy), settings)
    lengths = encoded(policy)[1].sum(dim=1)
    assert len(policy.sample(*encoded(policy), settings, (lengths <= 6).long()).response_ids) == 4


def test_a_rank_with_fewer_batches_repeats_its_last_one(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("llama", seed=1)
    settings = SamplingSettings(num_responses=1, max_new_tokens=8, batch_size=2)
    torch.manual_seed(0)
    plain = policy.sample(*encoded(policy), settings)
    monkeypatch.setattr(lockstep, "is_sharded", lambda module: True)
    monkeypatch.setattr(lockstep, "all_reduce_max", lambda number, *, device: number + 2)  # of another rank
    forwards = forwards_of(policy, batch_size=2)
    assert len([shape for shape, _ in forwards if shape[1] > 1]) == 5 + 2
    torch.manual_seed(0)
    assert torch.equal(policy.sample(*encoded(policy), settings).response_ids, plain.response_ids)
