"""A new policy has the properties that PPO assumes, or the difference is repaired, named or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaMLP

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings, encode_demonstrations
from ippo_lightning.policies import reference as reference_module
from ippo_lightning.policies.generation import generate as generate_module

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPERTS = {**SMALL, "num_key_value_heads": 1, "num_local_experts": 4, "initializer_range": 0.2}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
IDS = torch.tensor([[5, 9, 12, 20, 3, 4, 4, 7]])
NOISE = 0.1
BFLOAT16_STEP = 2.0**-5


def noisy_mlp(monkeypatch: pytest.MonkeyPatch, noise: Callable[[bool], float], *, frozen: bool = False) -> None:
    """Multiply what every MLP returns by `noise(training)`; `frozen` computes without gradients outside training."""
    plain = LlamaMLP.forward

    def forward(mlp: LlamaMLP, states: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and (mlp.training or not frozen)):
            return plain(mlp, states) * noise(mlp.training)

    monkeypatch.setattr(LlamaMLP, "forward", forward)


RANDOM: dict[str, Callable[[bool], float]] = {
    "torch": lambda training: 1 + NOISE * float(torch.rand(())) if training else 1.0,
    "python": lambda training: 1 + NOISE * random.random() if training else 1.0,
    "numpy": lambda training: 1 + NOISE * float(numpy.random.rand()) if training else 1.0,
    # as rare as a skipped layer: two passes nearly always agree
    "rare": lambda training: 2.0 if training and float(torch.rand(())) < 1e-9 else 1.0,
    "not random, but different": lambda training: 1.1 if training else 1.0,
}


@pytest.mark.parametrize("noise", RANDOM)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_train_mode_computes_what_evaluation_mode_computes(
    make_policy: Callable[..., CausalLMPolicy],
    demonstrations: EncodedResponses,
    monkeypatch: pytest.MonkeyPatch,
    noise: str,
    gradient_checkpointing: bool,
) -> None:
    expected = make_policy(self_check=False).eval()(*demonstrations).log_probs
    noisy_mlp(monkeypatch, RANDOM[noise])
    policy = make_policy(gradient_checkpointing=gradient_checkpointing)
    assert policy.quiet_training
    for _ in range(2):
        assert torch.equal(policy(*demonstrations).log_probs, expected)
    assert torch.equal(policy.reference_log_probs(*demonstrations), expected)
    layers = [module for module in policy.model.modules() if type(module).__name__ == "LlamaDecoderLayer"]
    # what checkpoints must know that it trains; nothing inside of it may
    assert {layer.training for layer in layers} == {gradient_checkpointing}
    policy.eval().train()
    assert torch.equal(policy(*demonstrations).log_probs, expected)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mixtral", **EXPERTS, "router_jitter_noise": 0.1},
        {"model_type": "phimoe", **EXPERTS},
    ],
    ids=lambda config: config["model_type"],
)
def test_router_noise_is_off_and_every_expert_still_trains(
    tokenizer: PreTrainedTokenizerFast, demonstrations: EncodedResponses, config: dict[str, Any]
) -> None:
    policy = CausalLMPolicy(config=config, tokenizer=tokenizer, gradient_checkpointing=True)
    first, second = policy(*demonstrations).log_probs, policy(*demonstrations).log_probs
    assert torch.equal(first, second)
    assert torch.equal(first, policy.reference_log_probs(*demonstrations))
    first.sum().backward()
    assert not [name for name, parameter in policy.model.named_parameters() if parameter.grad is None]


def test_the_noise_of_a_separate_critic_is_off_too(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy_mlp(monkeypatch, RANDOM["torch"])
    policy = make_policy(value="separate")
    first, second = (policy(*demonstrations, with_values=True).values for _ in range(2))
    assert torch.equal(first, second)


def test_a_model_that_computes_without_gradients_in_evaluation_mode_is_refused(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy_mlp(monkeypatch, RANDOM["torch"], frozen=True)
    with pytest.raises(UserError, match=r"policy: train mode is random .* gets no gradient"):
        make_policy()


def test_kept_dropout_stays_random_in_train_mode(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy("gpt2", fields={"resid_pdrop": 0.5}, keep_dropout=True)
    assert not policy.quiet_training
    assert not torch.equal(policy(*demonstrations).log_probs, policy(*demonstrations).log_probs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_ordinary_model_is_left_as_it_is(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, kind: str, dtype: str
) -> None:
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    checked, unchecked = make_policy(kind, dtype=dtype), make_policy(kind, dtype=dtype, self_check=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert not checked.quiet_training
    assert checked.context_length == unchecked.context_length == 64
    for one, two in zip(checked.modules(), unchecked.modules(), strict=True):
        plain = [
            {name: value for name, value in vars(each).items() if isinstance(value, (int, str))} for each in (one, two)
        ]
        assert plain[0] == plain[1] or one is checked
    for one, two in zip(checked.buffers(), unchecked.buffers(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(checked(*demonstrations).log_probs, unchecked(*demonstrations).log_probs)


def test_the_check_costs_a_handful_of_forwards_of_a_few_tokens(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    plain = LlamaForCausalLM.forward

    def counted(model: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> Any:
        tokens.append(input_ids.numel())
        return plain(model, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    make_policy()
    assert len(tokens) <= 20
    assert max(tokens) <= 2 * 13
    tokens.clear()
    make_policy(self_check=False)
    assert sum(tokens) <= 4, "a new model is tried once, because its sizes may be impossible"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_context_ends_where_longer_rows_change_shorter_ones(tokenizer: PreTrainedTokenizerFast, dtype: str) -> None:
    config = {
        "model_type": "phi3", **SMALL, "initializer_range": 0.2, "max_position_embeddings": 256,
        "original_max_position_embeddings": 32, "rope_scaling": LONGROPE, "pad_token_id": 0,
    }  # fmt: skip
    with pytest.warns(UserWarning, match=r"differs by .* nats beside a row of more than 32 tokens"):
        policy = CausalLMPolicy(config=config, tokenizer=tokenizer, dtype=dtype)
    assert policy.context_length == 32
    short, longest, longer = (
        encode_demonstrations(tokenizer, prompts, ["1;2"] * len(prompts), max_length=99)
        for prompts in (["1+2"], ["1+2", "7" * 28], ["1+2", "7" * 29])
    )
    alone, beside = policy(*short).log_probs, policy(*longest).log_probs
    # the same positions in another shape: float32 sums, and bfloat16 logits above 4 in steps of 1/32
    torch.testing.assert_close(beside[:1], alone, rtol=0, atol=1e-5 if dtype == "float32" else BFLOAT16_STEP)
    for score in (policy, policy.reference_log_probs):
        with pytest.raises(UserError, match=r"a row of 33 tokens exceeds the context of 32"):
            score(*longer)


def test_a_table_that_grows_beyond_the_context_is_never_reached(tokenizer: PreTrainedTokenizerFast) -> None:
    config = {
        "model_type": "llama", **SMALL, "max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    }  # fmt: skip
    policy = CausalLMPolicy(config=config, tokenizer=tokenizer)
    longer = encode_demonstrations(tokenizer, ["1+2", "7" * 29], ["1;2"] * 2, max_length=99)
    with pytest.raises(UserError, match=r"a row of 33 tokens exceeds the context of 32"):
        policy(*longer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_ignores_the_mask_is_refused(tokenizer: PreTrainedTokenizerFast, dtype: str) -> None:
    config = {"model_type": "rwkv", "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    with pytest.raises(UserError, match=r"policy: a row padded on the left differs by .* nats .* attention_mask"):
        CausalLMPolicy(config=config, tokenizer=tokenizer, dtype=dtype)
    assert CausalLMPolicy(config=config, tokenizer=tokenizer, dtype=dtype, self_check=False).model


def saved_adapter(base: str, folder: Path, **options: Any) -> str:
    """Save a trained adapter with PEFT alone."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    model.save_pretrained(folder)
    return str(folder)


def loaded_by_peft(base: str, adapter: str) -> torch.Tensor:
    torch.manual_seed(9)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("initialisation", ["pissa", "olora", "mica", "orthogonal", True])
@pytest.mark.parametrize("reference", ["auto", "copy"])
def test_a_continued_adapter_is_what_peft_loads_whatever_its_initialisation(
    base_folder: str, tmp_path: Path, demonstrations: EncodedResponses, initialisation: Any, reference: Any
) -> None:
    adapter = saved_adapter(base_folder, tmp_path / "sft", init_lora_weights=initialisation)
    expected = loaded_by_peft(base_folder, adapter)
    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter), reference=reference)
    with torch.no_grad():
        # the same float32 operations on the same weights
        torch.testing.assert_close(policy.language_model(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(policy(*demonstrations).log_probs, policy.reference_log_probs(*demonstrations))
    # the saved adapter and the merged model are loaded again and compared
    assert set(policy.save_pretrained(tmp_path / "saved")) == {"adapter", "merged"}


def test_an_adapter_whose_initialisation_is_random_is_refused(base_folder: str, tmp_path: Path) -> None:
    adapter = saved_adapter(base_folder, tmp_path / "sft", init_lora_weights="pissa_niter_1")
    with pytest.raises(UserError, match=r"policy\.lora\.adapter_path: two loads .* differ by .* nats"):
        CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter))


def test_a_reference_that_moves_the_base_is_refused(
    base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = saved_adapter(base_folder, tmp_path / "sft", init_lora_weights="pissa")
    monkeypatch.setattr(reference_module, "uninitialised", lambda config: config)
    with pytest.raises(UserError, match=r"policy\.lora\.adapter_path: the policy differs by .* nats from what PEFT"):
        CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter))


def test_a_reference_that_is_not_the_policy_is_refused(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = reference_module.frozen_copy

    def wrong(model: Any) -> Any:
        twin = plain(model)
        next(twin.parameters()).mul_(1.01)
        return twin

    monkeypatch.setattr(reference_module, "frozen_copy", wrong)
    with pytest.raises(UserError, match=r"policy\.reference: 'copy' differs by .* nats from the policy"):
        make_policy()


def test_auto_takes_a_copy_of_an_adapter_that_exists_only_once(base_folder: str, tmp_path: Path) -> None:
    adapter = saved_adapter(base_folder, tmp_path / "sft", bias="all")
    lora = LoraSettings(adapter_path=adapter)
    with pytest.raises(UserError, match=r"policy\.reference: 'adapter_copy' is not possible; .* use copy"):
        CausalLMPolicy(pretrained=base_folder, lora=lora, reference="adapter_copy")
    found = CausalLMPolicy(pretrained=base_folder, lora=lora)
    assert found.reference_kind == "copy"
    assert set(found.save_pretrained(tmp_path / "saved")) == {"adapter", "merged"}


PROCESSED: list[dict[str, Any]] = [
    {"suppress_tokens": [5, 6]},
    {"begin_suppress_tokens": [5, 6]},
    {"bad_words_ids": [[5]]},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 3},
    {"forced_eos_token_id": 2},
    {"exponential_decay_length_penalty": (0, 1.5)},
    {"sequence_bias": [[[5], 2.0]]},
    {"min_p": 0.3},
    {"epsilon_cutoff": 0.05},
]


@pytest.mark.parametrize("settings", PROCESSED, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("aside", [True, False])
def test_sampling_draws_from_the_scored_distribution_or_the_policy_is_refused(
    base_folder: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], aside: bool
) -> None:
    GenerationConfig(**settings, eos_token_id=2, do_sample=True).save_pretrained(base_folder)
    if aside:
        CausalLMPolicy(pretrained=base_folder)
        return

    @contextmanager
    def in_force(_model: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(generate_module, "own_generation_settings_aside", in_force)
    with pytest.raises(UserError, match=r"policy: sampling with a cache draws from a distribution that differs by"):
        CausalLMPolicy(pretrained=base_folder)


def test_a_model_whose_cache_changes_its_logits_is_refused(
    make_policy: Callable[..., CausalLMPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaForCausalLM.forward

    def forward(model: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> Any:
        output = plain(model, input_ids=input_ids, **options)
        if input_ids.shape[1] == 1:
            output.logits = output.logits * 1.05
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(UserError, match=r"sampling with a cache draws from .* differs by .* nats"):
        make_policy()


def test_a_policy_without_numbers_is_not_checked(make_policy: Callable[..., CausalLMPolicy]) -> None:
    with torch.device("meta"):
        policy = make_policy(reference="none", value="none")
    assert all(parameter.is_meta for parameter in policy.parameters())


@pytest.mark.parametrize("context", [3, 5])
def test_a_very_short_context_is_checked_within_it(make_policy: Callable[..., CausalLMPolicy], context: int) -> None:
    assert make_policy("gpt2", fields={"max_position_embeddings": context}).context_length == context
