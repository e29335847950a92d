"""The reference is the policy at its start, and does not change when the policy does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings
from ippo_lightning.policies import causal_lm as causal_lm_module
from ippo_lightning.policies.reference import resolve_reference

KINDS = [
    ("copy", {}),
    ("copy", {"lora": LoraSettings()}),
    ("adapter_off", {"lora": LoraSettings()}),
    ("adapter_copy", {"lora": LoraSettings()}),
    ("copy", {"continued": True}),
    ("adapter_copy", {"continued": True}),
]


@pytest.fixture
def policy(
    request: pytest.FixtureRequest, make_policy: Callable[..., CausalLMPolicy], base_folder: str
) -> CausalLMPolicy:
    """A policy of the parametrised kind of reference; a continued adapter has B unequal to 0."""
    kind, arguments = request.param
    if arguments.get("continued"):
        folder = request.getfixturevalue("adapter_folder")
        return make_policy(pretrained=base_folder, lora=LoraSettings(adapter_path=folder), reference=kind)
    return make_policy(reference=kind, **arguments)


def optimizer_steps(policy: CausalLMPolicy, demonstrations: EncodedResponses) -> None:
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = policy(*demonstrations, with_values=True)
        (output.values.square().sum() - output.log_probs.sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("policy", KINDS, indirect=True)
def test_the_reference_is_the_starting_policy_and_never_drifts(
    policy: CausalLMPolicy, demonstrations: EncodedResponses
) -> None:
    start = policy(*demonstrations).log_probs.detach()
    before = policy.reference_log_probs(*demonstrations)
    # the same float32 operations, but an adapter adds exact zeros in another order
    torch.testing.assert_close(before, start, rtol=0, atol=1e-6)
    optimizer_steps(policy, demonstrations)
    assert (policy(*demonstrations).log_probs - start).abs().max() > 0.1
    assert torch.equal(policy.reference_log_probs(*demonstrations), before)
    assert not before.requires_grad


@pytest.mark.parametrize("policy", KINDS, indirect=True)
def test_the_reference_has_no_trainable_parameter(policy: CausalLMPolicy) -> None:
    names = [name for name, _ in policy.named_trainable_parameters()]
    assert names
    assert not [name for name in names if "reference" in name]
    if policy.reference_kind == "copy":
        assert not [p for p in policy.reference_model.parameters() if p.requires_grad]
        trainable = {p.data_ptr() for p in policy.trainable_parameters()}
        assert not trainable & {p.data_ptr() for p in policy.reference_model.parameters()}
    else:
        assert all("lora" in name or "value_head" in name for name in names)


@pytest.mark.parametrize("policy", KINDS, indirect=True)
def test_scoring_with_the_reference_changes_no_mode_no_flag_and_no_adapter(
    policy: CausalLMPolicy, demonstrations: EncodedResponses, move_weights: Callable[..., None]
) -> None:
    move_weights(policy)
    frozen_by_hand = policy.policy_parameters()[0]
    frozen_by_hand.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in policy.parameters()]
    modes = [module.training for module in policy.modules()]
    before = policy(*demonstrations).log_probs
    policy.reference_log_probs(*demonstrations)
    with pytest.raises(IndexError):
        policy.reference_log_probs(demonstrations.prompt_ids + 1000, *demonstrations[1:])
    assert [parameter.requires_grad for parameter in policy.parameters()] == flags
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(policy(*demonstrations).log_probs, before)


@pytest.mark.parametrize("policy", KINDS, indirect=True)
def test_scoring_with_the_reference_between_forward_and_backward_changes_no_gradient(
    policy: CausalLMPolicy, demonstrations: EncodedResponses, move_weights: Callable[..., None]
) -> None:
    move_weights(policy)
    gradients = []
    for asked in (False, True):
        policy.zero_grad()
        loss = policy(*demonstrations).log_probs.sum()
        if asked:
            policy.reference_log_probs(*demonstrations)
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.policy_parameters()]))
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(("kind", "lora"), [("copy", None), ("adapter_off", LoraSettings())])
def test_the_reference_stays_in_evaluation_mode_and_ignores_kept_dropout(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, kind: str, lora: LoraSettings | None
) -> None:
    policy = make_policy("gpt2", fields={"resid_pdrop": 0.5}, lora=lora, reference=kind, keep_dropout=True)
    policy.train()
    if policy.reference_model is not None:
        assert not any(module.training for module in policy.reference_model.modules())
    first, second = (policy.reference_log_probs(*demonstrations) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [(None, "copy"), (LoraSettings(), "adapter_off"), (LoraSettings(adapter_path="x"), "adapter_copy")],
)
def test_auto_is_always_the_starting_policy(lora: LoraSettings | None, expected: str) -> None:
    assert resolve_reference("auto", lora) == expected


@pytest.mark.parametrize(
    ("kind", "lora", "words"),
    [
        ("adapter_off", LoraSettings(adapter_path="sft/adapter"), ["base model", "sft/adapter", "use adapter_copy"]),
        ("adapter_off", None, ["needs an adapter", "add lora"]),
        ("adapter_copy", None, ["needs an adapter", "add lora"]),
        ("base", None, ["'base' is unknown"]),
    ],
)
def test_a_reference_that_would_be_another_model_is_refused(
    kind: Any, lora: LoraSettings | None, words: list[str]
) -> None:
    with pytest.raises(UserError, match=r"policy\.reference: ") as caught:
        resolve_reference(kind, lora)
    assert all(word in str(caught.value) for word in words)


def test_reference_log_probs_without_a_reference_are_refused(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy(reference="none")
    assert not policy.has_reference
    with pytest.raises(UserError, match=r"policy\.reference: 'none'"):
        policy.reference_log_probs(*demonstrations)


@pytest.mark.parametrize(("kind", "is_continued"), [("adapter_off", False), ("adapter_copy", True)])
def test_a_reference_on_what_trains_is_a_copy_or_refused(
    kind: Any, is_continued: bool, base_folder: str, adapter_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = causal_lm_module.add_lora

    def trains_norms_too(*arguments: Any, **options: Any) -> Any:
        model = plain(*arguments, **options)
        next(p for name, p in model.named_parameters() if "norm" in name).requires_grad_(True)
        return model

    monkeypatch.setattr(causal_lm_module, "add_lora", trains_norms_too)
    lora = LoraSettings(adapter_path=adapter_folder if is_continued else None)
    found = CausalLMPolicy(pretrained=base_folder, lora=lora)
    assert found.reference_kind == "copy"
    assert not any("reference" in name.split(".") for name, _ in found.model.named_parameters())
    assert any("norm" in name for name, _ in found.named_trainable_parameters()), "what trained still trains"
    with pytest.raises(UserError, match=rf"policy\.reference: '{kind}' would change in training, because .*norm"):
        CausalLMPolicy(pretrained=base_folder, lora=lora, reference=kind)
