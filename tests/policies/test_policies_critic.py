"""The critic reads the language-model head's input, starts with the given spread, and shares only what it should."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings
from ippo_lightning.policies.critic import ValueHead

# the standard error of a standard deviation is 1 / sqrt(2 * 4096) = 1.1 % of it; this is more than four of them
SPREAD_OF_4096_DRAWS = 0.05


@pytest.mark.parametrize(("std", "expected"), [(None, 1 / math.sqrt(4097)), (0.3, 0.3), (0.0, 0.0)])
def test_a_head_starts_with_the_given_spread_and_no_bias(std: float | None, expected: float) -> None:
    head = ValueHead(4096, init_std=std)
    assert head.linear.weight.std().item() == pytest.approx(expected, rel=SPREAD_OF_4096_DRAWS)
    assert head.linear.bias.item() == 0.0


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.value_init_std: -1"):
        ValueHead(8, init_std=-1)


def test_values_start_at_zero_if_the_initial_spread_is_zero(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    assert (make_policy(value_init_std=0.0)(*demonstrations, with_values=True).values == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_float32_also_on_a_half_precision_model_and_under_autocast(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, dtype: str
) -> None:
    policy = make_policy(dtype=dtype)
    assert policy.value_head.linear.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert policy(*demonstrations, with_values=True).values.dtype == torch.float32


def test_a_head_trains_the_policys_features_and_a_separate_critic_does_not(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    for value, shared in (("head", True), ("separate", False)):
        policy = make_policy(value=value)
        policy(*demonstrations, with_values=True).values.square().sum().backward()
        assert all(parameter.grad is not None for parameter in policy.value_parameters())
        assert any(parameter.grad is not None for parameter in policy.policy_parameters()) is shared


def test_every_parameter_of_a_separate_critic_trains_also_next_to_an_adapter(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy(value="separate", lora=LoraSettings())
    policy(*demonstrations, with_values=True).values.sum().backward()
    assert len(policy.value_parameters()) == len(list(policy.critic.parameters()))
    assert all(parameter.grad is not None for parameter in policy.critic.parameters())
    assert all("lora" in name or name.startswith("critic") for name, _ in policy.named_trainable_parameters())


def test_a_separate_critic_starts_with_the_policys_trunk_and_no_shared_memory(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    policy = make_policy(value="separate")
    own = dict(policy.critic.trunk.named_parameters())
    for name, parameter in policy.language_model.base_model.named_parameters():
        assert torch.equal(own[name], parameter)
        assert own[name].data_ptr() != parameter.data_ptr()


def test_a_critic_next_to_a_continued_adapter_starts_from_the_continued_model(
    base_folder: str, adapter_folder: str, demonstrations: EncodedResponses
) -> None:
    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter_folder), value="separate")
    ids = demonstrations.prompt_ids[:1]
    of_policy = policy.language_model.base_model(ids).last_hidden_state
    of_critic = policy.critic.trunk(ids).last_hidden_state
    of_base = CausalLMPolicy(pretrained=base_folder).language_model.base_model(ids).last_hidden_state
    # merging adds the adapter in another order
    torch.testing.assert_close(of_critic, of_policy, rtol=0, atol=1e-4)
    assert (of_critic - of_base).abs().max() > 0.1


def test_every_trainable_parameter_belongs_to_either_the_policy_or_the_critic(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    for value in ("none", "head", "separate"):
        policy = make_policy(value=value)
        both = {id(p) for p in policy.policy_parameters()} | {id(p) for p in policy.value_parameters()}
        assert both == {id(p) for p in policy.trainable_parameters()}
        assert len(policy.policy_parameters()) + len(policy.value_parameters()) == len(both)
        assert bool(policy.value_parameters()) is policy.has_values
