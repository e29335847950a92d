"""The critic's adapter: values of its own, gradients that stay apart, and a policy that is as if it were not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings
from ippo_lightning.policies.sequences import join

LORA = LoraSettings(r=4, alpha=8)


def scrambled(policy: CausalLMPolicy) -> CausalLMPolicy:
    """Give both adapters weights far from 0, each by its name, so that policies of different kinds have equal ones."""
    for name, parameter in policy.named_parameters():
        if "lora_" in name and "reference" not in name:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture
def make(make_policy: Callable[..., CausalLMPolicy]) -> Callable[..., CausalLMPolicy]:
    return lambda *family, **settings: scrambled(make_policy(*family, **{"lora": LORA, "value": "adapter", **settings}))


def gradients(policy: CausalLMPolicy, loss: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def of_policy(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in named.items() if "critic" not in name and "value_head" not in name}


def values_of_a_merged_model(policy: CausalLMPolicy, base: CausalLMPolicy, demonstrations: EncodedResponses) -> Tensor:
    """The values of another base, into which PEFT has merged the critic's adapter, under the same head."""
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    other: Any = get_peft_model(base.model, config).to(base.model.dtype)
    set_peft_model_state_dict(other, get_peft_model_state_dict(policy.model, adapter_name="critic"))
    merged = other.merge_and_unload().base_model
    sequences = join(*demonstrations, limit=64)
    states = merged(**sequences._asdict(), use_cache=False).last_hidden_state
    steps = demonstrations.response_ids.shape[1]
    weight, bias = policy.value_head.linear.weight, policy.value_head.linear.bias
    values = (states @ weight.T + bias)[:, -steps - 1 : -1, 0]
    return torch.where(demonstrations.response_mask, values, 0.0)


# gemma2 has a cap behind the head; in fp64 its own attention to padding is not finite
@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("llama", torch.float64, 1e-6), ("gpt2", torch.float64, 1e-6), ("gemma2", torch.float32, 1e-4)],
)
def test_values_are_those_of_a_model_with_the_adapter_merged(
    make: Any, make_policy: Any, demonstrations: EncodedResponses, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    policy = make(family).to(dtype)
    base = make_policy(family, value="none", reference="none").to(dtype)
    found = policy(*demonstrations, with_values=True).values
    # transformers normalises in float32 whatever the weights are
    torch.testing.assert_close(
        found, values_of_a_merged_model(policy, base, demonstrations), rtol=tolerance, atol=tolerance
    )
    assert found.abs().max() > 0.1


def test_each_loss_trains_its_own_adapter_and_the_policys_gradient_is_that_without_a_critic(
    make: Any, demonstrations: EncodedResponses
) -> None:
    policy, plain = make(), make(value="none")
    output = policy(*demonstrations, with_values=True)
    together = gradients(policy, output.log_probs.sum() + output.values.square().sum())
    alone = gradients(plain, plain(*demonstrations).log_probs.sum())
    assert of_policy(together).keys() == alone.keys()
    assert all(torch.equal(together[name], gradient) for name, gradient in alone.items())
    of_values = gradients(policy, policy(*demonstrations, with_values=True).values.square().sum())
    assert not of_policy(of_values)
    assert all(torch.equal(together[name], gradient) for name, gradient in of_values.items())
    assert {id(p) for p in policy.value_parameters()} == {
        id(p) for name, p in policy.named_parameters() if name in of_values
    }
    assert len(policy.value_parameters()) + len(policy.policy_parameters()) == len(policy.trainable_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_checkpoint_compute_again_with_the_adapter_of_their_forward(
    make: Any, demonstrations: EncodedResponses, family: str
) -> None:
    found = []
    for checkpointing in (False, True):
        policy = make(family, gradient_checkpointing=checkpointing)
        output = policy(*demonstrations, with_values=True)
        found.append(gradients(policy, output.log_probs.sum() + output.values.square().sum()))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_policys_adapter_is_active_and_flags_stay_also_after_an_error(
    make: Any, demonstrations: EncodedResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make()
    frozen = next(p for name, p in policy.named_parameters() if "lora_A.critic" in name)
    frozen.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in policy.named_parameters()}
    before = policy(*demonstrations).log_probs
    policy(*demonstrations, with_values=True)
    monkeypatch.setattr(policy.value_head, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy(*demonstrations, with_values=True)
    assert torch.equal(policy(*demonstrations).log_probs, before)
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == flags
    assert policy.model.active_adapter == "default"


@pytest.mark.parametrize("reference", ["adapter_off", "adapter_copy", "copy"])
def test_the_reference_does_not_see_the_critics_adapter(
    make_policy: Any, demonstrations: EncodedResponses, reference: str
) -> None:
    policy = make_policy(lora=LORA, value="adapter", reference=reference)
    start = policy.reference_log_probs(*demonstrations)
    assert torch.equal(start, make_policy(lora=LORA, value="none").reference_log_probs(*demonstrations))
    values = policy(*demonstrations, with_values=True).values
    scrambled(policy)
    assert torch.equal(policy.reference_log_probs(*demonstrations), start)
    assert not torch.allclose(policy(*demonstrations, with_values=True).values, values)


def test_a_critic_beside_a_continued_adapter_has_its_rank_and_starts_as_the_base(
    base_folder: str, adapter_folder: str, demonstrations: EncodedResponses
) -> None:
    lora = LoraSettings(r=9, adapter_path=adapter_folder)
    policy = CausalLMPolicy(pretrained=base_folder, lora=lora, value="adapter")
    plain = CausalLMPolicy(pretrained=base_folder, lora=lora, value="none")
    assert policy.model.peft_config["critic"].r == 4
    assert torch.equal(policy(*demonstrations).log_probs, plain(*demonstrations).log_probs)
    of_base = CausalLMPolicy(pretrained=base_folder)(*demonstrations, with_values=True).values
    assert torch.equal(policy(*demonstrations, with_values=True).values, of_base)


def test_what_is_saved_is_the_policy_alone(make: Any, demonstrations: EncodedResponses, tmp_path: Path) -> None:
    policy = make()
    folders = policy.save_pretrained(tmp_path)
    weights = load_file(folders["adapter"] / "adapter_model.safetensors")
    assert len(weights) == len(policy.policy_parameters())
    assert not [path for path in tmp_path.rglob("*") if "critic" in path.name]
    again = CausalLMPolicy(pretrained=str(folders["merged"]))
    torch.testing.assert_close(again(*demonstrations).log_probs, policy(*demonstrations).log_probs, rtol=0, atol=1e-4)


def test_a_state_without_the_base_makes_the_same_values_again(make: Any, demonstrations: EncodedResponses) -> None:
    policy, other = make(), make(seed=0)
    for parameter in other.trainable_parameters():
        parameter.data.zero_()
    other.load_trainable_state_dict(policy.trainable_state_dict())
    expected, found = (one(*demonstrations, with_values=True) for one in (policy, other))
    assert torch.equal(expected.values, found.values)
    assert torch.equal(expected.log_probs, found.log_probs)


def test_one_base_is_in_memory(make: Any) -> None:
    policy, plain = make(), make(value="none")
    assert policy.critic.model is policy.model
    more = sum(p.numel() for p in policy.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == sum(p.numel() for p in policy.value_parameters())


def test_a_policy_without_an_adapter_is_refused(make_policy: Any) -> None:
    with pytest.raises(UserError, match=r"policy\.value: 'adapter' is a second adapter .* add lora") as raised:
        make_policy(value="adapter")
    assert "\n" not in str(raised.value)
