"""Every sampler draws the same: from the policy's own distribution, to the same ends, and leaves no state behind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_prompts

from ippo_lightning.policies.generation.vllm import engine_arguments, engine_rank, written_adapter

TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?", "9?"]
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "static": {"cache": "static"},
    "in batches": {"batch_size": 2},
    "static, in batches": {"cache": "static", "batch_size": 3},
    "continuous": {"sampler": "continuous"},
    "continuous, in batches": {"sampler": "continuous", "batch_size": 4},
}
HAS_VLLM = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


def encoded(policy: CausalLMPolicy) -> tuple[Tensor, Tensor]:
    return encode_prompts(policy.tokenizer, TEXTS, max_length=32)


@pytest.mark.parametrize(
    ("way", "architecture", "lora"),
    [
        *((way, "llama", None) for way in OTHER_WAYS),
        *((way, architecture, None) for way in ("static", "continuous") for architecture in ("gpt2", "qwen2")),
        *((way, "llama", LoraSettings(r=4)) for way in ("static", "continuous")),
    ],
)
def test_the_likeliest_responses_are_the_same_however_they_are_drawn(
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
        seen.append((tuple(ids.shape), type(kwargs.get("past_key_values")).__name__))

    handle = policy.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        policy.sample(*encoded(policy), SamplingSettings(num_responses=2, max_new_tokens=4, **settings))
    finally:
        handle.remove()
    return seen


def test_every_setting_changes_how_the_model_is_asked(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    plain = forwards_of(policy)
    assert {kind for _, kind in plain} == {"DynamicCache"}
    assert plain[0][0] == (10, 8)  # two responses to each of five prompts, padded to the longest
    assert {kind for _, kind in forwards_of(policy, cache="static")} == {"StaticCache"}
    # neighbours in length: the two shortest prompts first, without the padding of the longest
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


@pytest.mark.parametrize("way", ["static", "in batches", "continuous"])
def test_a_stream_of_random_numbers_gives_the_same_responses_again_and_is_not_started_anew(
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


def test_continuous_batching_leaves_the_model_as_it_was(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    network = policy.language_model
    before = (network.config._attn_implementation, network.config.use_cache, network.generation_config.to_dict())
    policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="continuous"))
    assert (network.config._attn_implementation, network.config.use_cache) == before[:2]
    assert network.generation_config.to_dict() == before[2]
    assert policy.training
    assert all(module.training for module in network.modules())


def test_continuous_batching_that_fails_says_so(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("llama")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory left for pages")

    monkeypatch.setattr(policy.language_model.model.layers[0], "forward", broken)
    with pytest.raises(UserError, match=r"sampling.sampler: continuous batching (failed|ended)"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="continuous"))
    assert policy.training


# --- vLLM ------------------------------------------------------------------------------------------------


@pytest.fixture
def base(make_policy: Callable[..., CausalLMPolicy], tmp_path: Path) -> Path:
    return make_policy("llama").save_pretrained(tmp_path / "base")["model"]


def test_without_vllm_one_line_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, also where it is
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    with pytest.raises(UserError, match=r"sampler: vllm is not installed; pip install 'ippo-lightning\[vllm\]'"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_vllm_is_refused_where_the_policy_has_nothing_to_send(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    with pytest.raises(UserError, match=r"vllm gets the adapter of a saved base; set policy.lora and pretrained"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_vllm_is_refused_where_it_would_sample_from_another_base(base: Path) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2), quantization="nf4")
    with pytest.raises(UserError, match=r"engine: no quantization, while the policy's base is nf4"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_the_adapter_is_written_as_a_server_reads_it(base: Path, tmp_path: Path) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    folder = written_adapter(policy.model, policy.tokenizer, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 8), (16, 16), (300, 320), (600, 600)])
def test_the_engine_gets_a_rank_it_knows(rank: int, expected: int) -> None:
    assert engine_rank(rank) == expected


def test_arguments_for_the_engine_are_handed_on_and_win() -> None:
    base = {"base": "folder", "max_lora_rank": 12, "dtype": "bfloat16", "trust_remote_code": False}
    plain = engine_arguments(**base, options={})
    assert (plain["model"], plain["max_lora_rank"], plain["enable_lora"]) == ("folder", 16, True)
    changed = engine_arguments(**base, options={"gpu_memory_utilization": 0.4, "dtype": "float16"})
    assert changed == {**plain, "gpu_memory_utilization": 0.4, "dtype": "float16"}


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM and a GPU: pip install 'ippo-lightning[vllm]'")
def test_vllm_draws_what_the_policy_would_and_follows_its_adapter(
    base: Path, move_weights: Callable[..., None]
) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=8)).to("cuda")
    numbers = {"num_responses": 1, "max_new_tokens": 8, "greedy": True}
    vllm = SamplingSettings(**numbers, sampler="vllm", engine={"gpu_memory_utilization": 0.2, "enforce_eager": True})
    prompts = tuple(part.to("cuda") for part in encoded(policy))
    for _ in range(2):  # the second time with another adapter
        drawn = policy.sample(*prompts, vllm)
        assert torch.equal(drawn.response_ids, policy.sample(*prompts, SamplingSettings(**numbers)).response_ids)
        move_weights(policy)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "fast"}, "sampling.sampler: 'fast' is unknown; use generate or continuous or vllm"),
        ({"cache": "big"}, "sampling.cache: 'big' is unknown; use dynamic or static"),
        ({"batch_size": 0}, "sampling.batch_size: 0 is out of range; expected an integer >= 1"),
        ({"engine": {"seed": 1}}, "sampling.engine: generate has no engine"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SamplingSettings(**settings)
