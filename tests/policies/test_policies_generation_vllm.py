"""vLLM gets the policy's adapter and samples what the policy would; what it cannot do is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_prompts
from ippo_lightning.policies.generation.vllm import engine_arguments, engine_rank, written_adapter

TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?", "9?"]
HAS_VLLM = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


def encoded(policy: CausalLMPolicy) -> tuple[Tensor, Tensor]:
    return encode_prompts(policy.tokenizer, TEXTS, max_length=32)


@pytest.fixture
def base(make_policy: Callable[..., CausalLMPolicy], tmp_path: Path) -> Path:
    return make_policy("llama").save_pretrained(tmp_path / "base")["model"]


def test_without_vllm_the_message_names_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, also where it is
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    with pytest.raises(UserError, match=r"sampler: vllm is not installed; pip install 'ippo-lightning\[vllm\]'"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_vllm_is_refused_for_a_policy_without_an_adapter(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    with pytest.raises(UserError, match=r"vllm gets the adapter of a saved base; set policy.lora and pretrained"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_vllm_is_refused_if_it_would_sample_from_another_base(base: Path) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2), quantization="nf4")
    with pytest.raises(UserError, match=r"engine: no quantization, while the policy's base is nf4"):
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))


def test_the_adapters_files_are_directly_in_the_folder_for_vllm(base: Path, tmp_path: Path) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    folder = written_adapter(policy.model, policy.tokenizer, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 8), (16, 16), (300, 320), (600, 600)])
def test_the_engine_gets_a_rank_that_it_accepts(rank: int, expected: int) -> None:
    assert engine_rank(rank) == expected


def test_the_users_engine_arguments_override_the_policys() -> None:
    base = {"base": "folder", "max_lora_rank": 12, "dtype": "bfloat16", "trust_remote_code": False}
    plain = engine_arguments(**base, options={})
    assert (plain["model"], plain["max_lora_rank"], plain["enable_lora"]) == ("folder", 16, True)
    changed = engine_arguments(**base, options={"gpu_memory_utilization": 0.4, "dtype": "float16"})
    assert changed == {**plain, "gpu_memory_utilization": 0.4, "dtype": "float16"}


class FakeRequest:
    def __init__(self, name: str, number: int, folder: str) -> None:
        self.number, self.files = number, {path.name for path in Path(folder).iterdir()}


class FakeEngine:
    """Answers every prompt with 10 + its own length, then EOS; counts engines, and records adapters and seeds."""

    started = 0

    def __init__(self, **arguments: object) -> None:
        type(self).started += 1
        self.adapters: list[FakeRequest] = []
        self.seeds: list[int] = []

    def generate(self, prompts: list[dict], parameters: list, *, lora_request: FakeRequest, use_tqdm: bool) -> list:
        self.adapters.append(lora_request)
        self.seeds += [each.seed for each in parameters]
        answers = [SimpleNamespace(token_ids=(10 + len(prompt["prompt_token_ids"]), 2)) for prompt in prompts]
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


def test_one_engine_serves_all_requests_of_a_policy_with_a_new_adapter_per_batch(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].LLM, sys.modules["vllm"].SamplingParams = FakeEngine, SimpleNamespace
    sys.modules["vllm.lora.request"].LoRARequest = FakeRequest
    monkeypatch.setattr(FakeEngine, "started", 0)
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    for settings in (
        SamplingSettings(num_responses=1, max_new_tokens=4, sampler="vllm"),
        SamplingSettings(num_responses=2, max_new_tokens=8, sampler="vllm", batch_size=4),
    ):
        samples = policy.sample(*encoded(policy), settings, torch.tensor([2, 0, 1, 0, 3]))
        assert samples.response_ids.tolist() == [[16, 2], [16, 2], [14, 2], [12, 2], [12, 2], [12, 2]]
    engine = policy._sampler(settings)._engine
    assert FakeEngine.started == 1
    assert [adapter.number for adapter in engine.adapters] == [1, 2, 3]
    assert all("adapter_model.safetensors" in adapter.files for adapter in engine.adapters)
    assert len(set(engine.seeds)) == len(engine.seeds) == 12


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM and a GPU: pip install 'ippo-lightning[vllm]'")
def test_vllm_samples_what_the_policy_would_and_follows_its_adapter(
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
