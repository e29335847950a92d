"""A quantised policy trains its adapter like a dense model with the dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings, SamplingSettings
from ippo_lightning.policies.quantized import QUANTIZED_LAYERS, dense_copy, is_quantized
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.storage.quantized_loading import pin_layers

# float32 on both sides, with the products in another order; int8 also rounds activations to eight bits
ROUNDING = {"nf4": 1e-4, "fp4": 1e-4, "int8": 3e-2}


@pytest.fixture(params=list(ROUNDING))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def policy(base_folder: str, kind: Any) -> CausalLMPolicy:
    return CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(r=4), quantization=kind)


def dense_twin(policy: CausalLMPolicy, base_folder: str, tmp_path: Path, kind: Any) -> CausalLMPolicy:
    """The same adapter on an ordinary model with the dequantised weights."""
    quantized = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(r=4), quantization=kind)
    dense = dense_copy(quantized.model.unload())
    assert not is_quantized(dense)
    dense.save_pretrained(tmp_path / "dense")
    policy.tokenizer.save_pretrained(tmp_path / "dense")
    twin = CausalLMPolicy(pretrained=str(tmp_path / "dense"), lora=LoraSettings(r=4))
    twin.load_trainable_state_dict(policy.trainable_state_dict())
    return twin


def base_weights(policy: CausalLMPolicy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if "lora" not in name}


def gradients(policy: CausalLMPolicy, demonstrations: EncodedResponses) -> dict[str, Tensor]:
    policy.zero_grad()
    output = policy(*demonstrations, with_values=True)
    (output.values.square().sum() - output.log_probs.sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_trainable_parameters()}


def test_the_linear_layers_are_quantised_and_the_head_is_not(policy: CausalLMPolicy, kind: str) -> None:
    layers = [module for module in policy.modules() if isinstance(module, QUANTIZED_LAYERS)]
    assert len(layers) == 2 * 7
    if kind != "int8":
        assert {layer.weight.quant_state.quant_type for layer in layers} == {kind}
        assert all(layer.weight.quant_state.nested for layer in layers)
    assert not isinstance(policy.language_model.get_output_embeddings(), QUANTIZED_LAYERS)


def test_double_quantisation_and_compute_dtype_have_an_effect(base_folder: str) -> None:
    settings: dict[str, Any] = {"pretrained": base_folder, "lora": LoraSettings(r=4), "quantization": "nf4"}
    policy = CausalLMPolicy(**settings, double_quantization=False, compute_dtype="bfloat16")
    layers = [module for module in policy.modules() if isinstance(module, Linear4bit)]
    assert not any(layer.weight.quant_state.nested for layer in layers)
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantization": "nf3"}, r"policy\.quantization: 'nf3' is unknown; use one of nf4, fp4, int8"),
        ({"quantization": "nf4", "compute_dtype": "fp8"}, r"policy\.compute_dtype: 'fp8' is unknown"),
    ],
)
def test_an_unknown_quantisation_or_dtype_is_refused(base_folder: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(), **settings)


def test_policy_reference_and_value_head_use_the_same_base(policy: CausalLMPolicy) -> None:
    """The frozen memory is that of one quantised base, its embeddings and its norms."""
    frozen = {p.data_ptr(): p.numel() * p.element_size() for p in policy.parameters() if not p.requires_grad}
    named = list(policy.named_parameters())
    embeddings = sum(p.numel() * p.element_size() for name, p in named if "embed" in name or "lm_head" in name)
    layers = [module for module in policy.modules() if isinstance(module, QUANTIZED_LAYERS)]
    quantised = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    norms = sum(p.numel() * p.element_size() for name, p in named if "norm" in name)
    assert sum(frozen.values()) == quantised + embeddings + norms
    assert policy.reference_model is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_after_sampling_equal_those_of_a_dense_dequantised_model(
    base_folder: str,
    tmp_path: Path,
    demonstrations: EncodedResponses,
    move_weights: Callable[..., None],
    checkpointing: bool,
    kind: Any,
) -> None:
    policy = CausalLMPolicy(
        pretrained=base_folder, lora=LoraSettings(r=4), quantization=kind, gradient_checkpointing=checkpointing
    )
    move_weights(policy)
    twin = dense_twin(policy, base_folder, tmp_path, kind)
    policy.sample(demonstrations.prompt_ids, demonstrations.prompt_mask, SamplingSettings(max_new_tokens=4))
    policy.reference_log_probs(*demonstrations)
    expected = gradients(twin, demonstrations)
    found = gradients(policy, demonstrations)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= ROUNDING[kind] * gradient.norm(), name
        assert gradient.norm() > 0
    torch.testing.assert_close(
        policy(*demonstrations).log_probs, twin(*demonstrations).log_probs, rtol=0, atol=ROUNDING[kind]
    )


def test_training_lowers_the_loss_moves_the_adapter_and_keeps_base_and_reference(
    policy: CausalLMPolicy, demonstrations: EncodedResponses
) -> None:
    base, reference = base_weights(policy), policy.reference_log_probs(*demonstrations)
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        policy.sample(demonstrations.prompt_ids, demonstrations.prompt_mask, SamplingSettings(max_new_tokens=2))
        loss = -policy(*demonstrations).log_probs.sum() / demonstrations.response_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = base_weights(policy)
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)
    assert torch.equal(policy.reference_log_probs(*demonstrations), reference)


def test_the_ratio_is_one_before_the_first_update_and_the_reference_equals_the_policy(
    policy: CausalLMPolicy, demonstrations: EncodedResponses
) -> None:
    old = policy.eval()(*demonstrations).log_probs
    assert torch.equal(policy.train()(*demonstrations).log_probs, old)
    torch.testing.assert_close(policy.reference_log_probs(*demonstrations), old, rtol=0, atol=1e-6)


def test_greedy_samples_are_the_likeliest_tokens_by_the_policys_own_scores(
    policy: CausalLMPolicy, demonstrations: EncodedResponses, move_weights: Callable[..., None]
) -> None:
    move_weights(policy)
    prompts = (demonstrations.prompt_ids, demonstrations.prompt_mask)
    greedy = policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=6, greedy=True))
    before, last = greedy.response_ids[0, :-1], greedy.response_ids[0, -1]
    candidates = torch.arange(28)
    response_ids = torch.cat([before.expand(28, -1), candidates[:, None]], dim=1)
    first_prompt = (part[:1].expand(28, -1) for part in prompts)
    scored = policy(*first_prompt, response_ids, torch.ones_like(response_ids, dtype=torch.bool)).log_probs
    assert scored[:, -1].argmax() == last


def test_a_saved_adapter_and_a_saved_merged_model_compute_the_same_again(
    policy: CausalLMPolicy,
    base_folder: str,
    tmp_path: Path,
    demonstrations: EncodedResponses,
    move_weights: Callable[..., None],
    kind: Any,
) -> None:
    move_weights(policy)
    now = policy(*demonstrations).log_probs
    random_state = torch.get_rng_state()
    saved = policy.save_pretrained(tmp_path / "tuned")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(policy(*demonstrations).log_probs, now)
    again = CausalLMPolicy(
        pretrained=base_folder, lora=LoraSettings(adapter_path=str(saved["adapter"])), quantization=kind
    )
    assert torch.equal(again(*demonstrations).log_probs, now)
    assert torch.equal(again.reference_log_probs(*demonstrations), now)
    merged = CausalLMPolicy(pretrained=str(saved["merged"]))
    assert not is_quantized(merged)
    assert not hasattr(AutoModelForCausalLM.from_pretrained(saved["merged"]).config, "quantization_config")
    # one product instead of two
    torch.testing.assert_close(merged(*demonstrations).log_probs, now, rtol=0, atol=ROUNDING[kind])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(saved["adapter"]))
    assert plain.peft_config[POLICY_ADAPTER].r == 4


def test_adapters_and_value_head_are_float32_on_a_half_precision_4bit_base(
    base_folder: str, demonstrations: EncodedResponses
) -> None:
    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(), quantization="nf4", dtype="bfloat16")
    assert {parameter.dtype for parameter in policy.trainable_parameters()} == {torch.float32}
    assert policy.language_model.dtype == torch.bfloat16
    assert all(gradient.isfinite().all() for gradient in gradients(policy, demonstrations).values())


def test_a_model_saved_in_4bit_needs_an_adapter(policy: CausalLMPolicy, tmp_path: Path) -> None:
    policy.model.unload().save_pretrained(tmp_path / "small")
    policy.tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=r"policy\.pretrained: the saved weights are quantised"):
        CausalLMPolicy(pretrained=str(tmp_path / "small"))
    loaded = CausalLMPolicy(pretrained=str(tmp_path / "small"), lora=LoraSettings())
    layers = [module for module in loaded.modules() if isinstance(module, QUANTIZED_LAYERS)]
    assert layers
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers)


def test_no_layer_may_repack_its_weights(base_folder: str) -> None:
    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(r=4), quantization="nf4")
    layers = [module for module in policy.modules() if isinstance(module, Linear4bit)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    layers[0].support_avx512bf16_for_cpu = True
    pin_layers(policy)
    assert not layers[0].support_avx512bf16_for_cpu
