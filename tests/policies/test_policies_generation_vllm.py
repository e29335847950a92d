"""vLLM gets the policy's adapter and samples what the policy would; what it cannot do is refused."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_prompts
from ippo_lightning.policies.generation import vllm_engine
from ippo_lightning.policies.generation.vllm import engine_arguments
from ippo_lightning.policies.generation.vllm_weights import engine_rank, is_plain_lora, written_adapter

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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"use_dora": True}, False),
        ({"bias": "lora_only"}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"rank_pattern": {"q_proj": 4}}, False),
        ({"alpha_pattern": {"q_proj": 3}}, False),
    ],
    ids=lambda value: next(iter(value), "plain") if isinstance(value, dict) else None,
)
def test_only_an_adapter_that_vllm_computes_alike_is_given_to_it_as_one(
    make_policy: Callable[..., CausalLMPolicy], changes: dict[str, object], expected: bool
) -> None:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(make_policy("qwen2").language_model, PeftLora(**{**settings, **changes}))
    assert is_plain_lora(model) is expected


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
    base = {"tokenizer": "folder", "dtype": "bfloat16", "trust_remote_code": False}
    plain = engine_arguments({"model": "base"}, **base, options={})
    assert (plain["model"], plain["tokenizer"], plain["dtype"]) == ("base", "folder", "bfloat16")
    changed = engine_arguments({"model": "base"}, **base, options={"gpu_memory_utilization": 0.4, "dtype": "float16"})
    assert changed == {**plain, "gpu_memory_utilization": 0.4, "dtype": "float16"}


class FakeRequest:
    def __init__(self, name: str, number: int, folder: str) -> None:
        self.number, self.files = number, {path.name for path in Path(folder).iterdir()}


class FakeEngine:
    """Answers every prompt with 10 + its own length, then EOS; counts engines, and records what they get."""

    started = 0

    def __init__(self, **arguments: object) -> None:
        type(self).started += 1
        self.arguments = arguments
        self.adapters: list[FakeRequest] = []
        self.reloads: list[set[str]] = []
        self.seeds: list[int] = []

    def collective_rpc(self, method: str, *, kwargs: dict[str, str]) -> None:
        assert method == "reload_weights"
        self.reloads.append({path.name for path in Path(kwargs["weights_path"]).iterdir()})

    def generate(
        self, prompts: list[dict], parameters: list, *, lora_request: FakeRequest | None, use_tqdm: bool
    ) -> list:
        self.adapters.append(lora_request)
        self.seeds += [each.seed for each in parameters]
        ids = [(10 + len(prompt["prompt_token_ids"]), 2) for prompt in prompts]
        answers = [
            SimpleNamespace(token_ids=row, logprobs=[{token: SimpleNamespace(logprob=-token / 8)} for token in row])
            for row in ids
        ]
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].LLM, sys.modules["vllm"].SamplingParams = FakeEngine, SimpleNamespace
    sys.modules["vllm.lora.request"].LoRARequest = FakeRequest
    monkeypatch.setattr(FakeEngine, "started", 0)


@pytest.mark.usefixtures("fake_vllm")
def test_one_engine_serves_all_requests_of_a_policy_with_a_new_adapter_per_request(base: Path) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))
    for settings in (
        SamplingSettings(num_responses=1, max_new_tokens=4, sampler="vllm"),
        SamplingSettings(num_responses=2, max_new_tokens=8, sampler="vllm", batch_size=4),
    ):
        samples = policy.sample(*encoded(policy), settings, torch.tensor([2, 0, 1, 0, 3]))
        assert samples.response_ids.tolist() == [[16, 2], [16, 2], [14, 2], [12, 2], [12, 2], [12, 2]]
        assert samples.log_probs is not None
        assert torch.equal(samples.log_probs, -samples.response_ids / 8)
    engine = policy._sampler(settings)._engine.llm
    assert FakeEngine.started == 1
    assert [adapter.number for adapter in engine.adapters] == [1, 2, 2]  # the second request takes two batches
    assert all("adapter_model.safetensors" in adapter.files for adapter in engine.adapters)
    assert len(set(engine.seeds)) == len(engine.seeds) == 12


@pytest.mark.usefixtures("fake_vllm")
def test_a_policy_without_an_adapter_gives_all_of_its_weights(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    settings = SamplingSettings(num_responses=1, max_new_tokens=4, sampler="vllm", dtype="bfloat16")
    policy.sample(*encoded(policy), settings)
    policy.sample(*encoded(policy), settings)
    engine = policy._sampler(settings)._engine.llm
    assert [{"config.json", "model.safetensors"} <= files for files in engine.reloads] == [True, True]
    assert engine.adapters == [None, None]
    assert engine.arguments["dtype"] == "bfloat16"
    assert (Path(engine.arguments["model"]) / "model.safetensors").is_file()  # it starts from the policy, too


@pytest.mark.usefixtures("fake_vllm")
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (RuntimeError("the engine is dead\nsee above"), ConnectionError, r"ended \(RuntimeError: the engine is dead\)"),
        (ValueError("too long"), UserError, r"sampling.engine: vLLM refuses the request \(too long\)"),
    ],
    ids=["a dead engine", "a refused request"],
)
def test_an_error_of_the_engine_is_one_line_and_only_a_refusal_is_the_users(
    base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], message: str
) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FakeEngine, "generate", fail)
    with pytest.raises(raised, match=message) as caught:
        policy.sample(*encoded(policy), SamplingSettings(max_new_tokens=4, sampler="vllm"))
    assert "\n" not in str(caught.value)
    # the command line prints any OSError as one line, with exit code 1, and a user's mistake with 2
    assert isinstance(caught.value, OSError) is (raised is ConnectionError)


def test_a_call_that_waits_for_a_process_that_has_ended_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_PATIENCE", 0.05)
    answered = threading.Event()
    llm = SimpleNamespace(collective_rpc=lambda method, *, kwargs: answered.wait(30))
    looks = iter([True, True, False])
    engine = vllm_engine.Engine(llm, [SimpleNamespace(is_alive=lambda: next(looks))])
    with pytest.raises(ConnectionError, match="its process ended during reload_weights"):
        engine.collective_rpc("reload_weights", kwargs={})
    answered.set()


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
