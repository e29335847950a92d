"""A saved policy loads with plain transformers and PEFT, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings

IDS = torch.tensor([[5, 9, 12, 20, 3], [4, 4, 7, 1, 2]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma2"])
def test_a_saved_model_loads_with_the_same_weights(
    make_policy: Callable[..., CausalLMPolicy], move_weights: Callable[..., None], tmp_path: Path, architecture: str
) -> None:
    policy = make_policy(architecture, fields={"attn_pdrop": 0.25} if architecture == "gpt2" else {})
    move_weights(policy)
    assert policy.save_pretrained(tmp_path) == {"model": tmp_path}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(policy.language_model))
    assert AutoTokenizer.from_pretrained(tmp_path)("7+12?")["input_ids"] == policy.tokenizer("7+12?")["input_ids"]
    assert architecture != "gpt2" or loaded.config.attn_pdrop == 0.25


@pytest.mark.parametrize("reference", ["adapter_off", "adapter_copy", "copy"])
def test_a_saved_adapter_loads_alone_and_merged(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    base_folder: str,
    tmp_path: Path,
    reference: str,
) -> None:
    policy = make_policy(pretrained=base_folder, lora=LoraSettings(r=4), reference=reference)
    move_weights(policy)
    now = logits(policy.language_model)
    saved = policy.save_pretrained(tmp_path / "tuned")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    assert (logits(base) - now).abs().max() > 0.1
    assert torch.equal(logits(PeftModel.from_pretrained(base, str(saved["adapter"]))), now)
    merged = AutoModelForCausalLM.from_pretrained(saved["merged"])
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    # W x + B A x in one product instead of two, float32, logits of order 10
    torch.testing.assert_close(logits(merged), now, rtol=0, atol=1e-4)
    assert not (saved["adapter"] / "reference").exists()
    for folder in saved.values():
        assert AutoTokenizer.from_pretrained(folder).pad_token == "<pad>"


def test_saving_does_not_change_the_policy(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    demonstrations: EncodedResponses,
    tmp_path: Path,
) -> None:
    policy = make_policy(lora=LoraSettings(), reference="adapter_copy")
    move_weights(policy)
    before, reference = policy(*demonstrations).log_probs, policy.reference_log_probs(*demonstrations)
    names = [name for name, _ in policy.named_trainable_parameters()]
    random_state = torch.get_rng_state()
    policy.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(policy(*demonstrations).log_probs, before)
    assert torch.equal(policy.reference_log_probs(*demonstrations), reference)
    assert [name for name, _ in policy.named_trainable_parameters()] == names
    policy(*demonstrations).log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.policy_parameters())


def test_a_policy_continues_from_what_was_saved(
    base_folder: str, adapter_folder: str, demonstrations: EncodedResponses
) -> None:
    continued = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter_folder))
    merged = CausalLMPolicy(pretrained=str(Path(adapter_folder).parent / "merged"))
    # merged weights against base plus adapter, as above
    torch.testing.assert_close(
        continued(*demonstrations).log_probs, merged(*demonstrations).log_probs, rtol=0, atol=1e-4
    )
    assert continued.reference_kind == "adapter_copy"
    assert continued.policy_parameters()


@pytest.mark.parametrize("lora", [None, LoraSettings()])
def test_the_trainable_state_restores_policy_and_critic(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    demonstrations: EncodedResponses,
    lora: LoraSettings | None,
) -> None:
    policy, twin = make_policy(lora=lora), make_policy(lora=lora)
    move_weights(policy)
    state = policy.trainable_state_dict()
    twin.load_trainable_state_dict(state)
    expected, found = (each(*demonstrations, with_values=True) for each in (policy, twin))
    assert torch.equal(expected.log_probs, found.log_probs)
    assert torch.equal(expected.values, found.values)
    assert torch.equal(policy.reference_log_probs(*demonstrations), twin.reference_log_probs(*demonstrations))
    move_weights(policy)
    assert all(torch.equal(state[name], parameter) for name, parameter in twin.named_trainable_parameters())


def test_a_state_of_other_settings_is_refused_and_changes_nothing(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy(lora=LoraSettings(r=4))
    before = policy.trainable_state_dict()
    with pytest.raises(UserError, match="names differ"):
        policy.load_trainable_state_dict(make_policy().trainable_state_dict())
    with pytest.raises(UserError, match=r"has shape .* expected"):
        policy.load_trainable_state_dict(make_policy(lora=LoraSettings(r=8)).trainable_state_dict())
    assert all(torch.equal(before[name], parameter) for name, parameter in policy.named_trainable_parameters())
