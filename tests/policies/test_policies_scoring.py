"""Log-probabilities and values of padded batches equal those of one unpadded sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings

# Models run in float64, but transformers computes rotary angles in float32. Gemma 2 knows only eager attention, whose
# softmax is in float32 too and overflows on float64 masks: it runs in float32, with log-probabilities of order 10.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-5}
ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma2"]


def precise(policy: CausalLMPolicy) -> CausalLMPolicy:
    return policy if policy.language_model.config.model_type == "gemma2" else policy.double()


def one_token_at_a_time(policy: CausalLMPolicy, encoded: EncodedResponses, temperature: float) -> dict[str, Tensor]:
    """The independent source: one forward per token over the text before it, without padding, masks or positions."""
    shape = encoded.response_ids.shape
    found = {name: torch.zeros(shape, dtype=torch.float64) for name in ("log_probs", "entropy", "values")}
    for row in range(shape[0]):
        text = encoded.prompt_ids[row][encoded.prompt_mask[row]].tolist()
        for column, token in enumerate(encoded.response_ids[row][encoded.response_mask[row]].tolist()):
            ids = torch.tensor([text])
            outputs = policy.language_model(ids, output_hidden_states=True)
            distribution = torch.distributions.Categorical(logits=outputs.logits[0, -1] / temperature)
            found["log_probs"][row, column] = distribution.log_prob(torch.tensor(token))
            found["entropy"][row, column] = distribution.entropy()
            if policy.critic is not None:
                hidden = policy.critic.trunk(ids).last_hidden_state[0, -1]
                linear = policy.critic.head.linear
            else:
                hidden, linear = outputs.hidden_states[-1][0, -1], policy.value_head.linear
            found["values"][row, column] = (hidden * linear.weight[0]).sum() + linear.bias[0]
            text.append(token)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("value", ["head", "separate"])
def test_padding_changes_no_number_and_each_token_is_scored_before_it_is_read(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, architecture: str, value: str
) -> None:
    policy = precise(make_policy(architecture, value=value, value_init_std=0.5, seed=3))
    if policy.critic is not None:  # so that the critic differs from the policy
        with torch.no_grad():
            for parameter in policy.critic.trunk.parameters():
                parameter.mul_(1.3)
    with torch.no_grad():
        output = policy(*demonstrations, temperature=0.7, with_values=True, with_entropy=True)
        reference = policy.reference_log_probs(*demonstrations, temperature=0.7)
        expected = one_token_at_a_time(policy, demonstrations, 0.7)
    for name, numbers in expected.items():
        torch.testing.assert_close(
            getattr(output, name).double(), numbers, rtol=0, atol=TOLERANCE[policy.language_model.dtype]
        )
    torch.testing.assert_close(
        reference.double(), expected["log_probs"], rtol=0, atol=TOLERANCE[policy.language_model.dtype]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_more_padding_of_any_content_changes_nothing(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, architecture: str
) -> None:
    policy = precise(make_policy(architecture))
    prompt_ids, prompt_mask, response_ids, response_mask = demonstrations
    rows = len(prompt_ids)
    junk, off = torch.randint(0, 28, (rows, 5)), torch.zeros(rows, 5, dtype=torch.bool)
    wider = (
        torch.cat([junk, prompt_ids], dim=1),
        torch.cat([off, prompt_mask], dim=1),
        torch.cat([response_ids, junk], dim=1),
        torch.cat([response_mask, off], dim=1),
    )
    narrow = policy(*demonstrations, with_values=True, with_entropy=True)
    wide = policy(*wider, with_values=True, with_entropy=True)
    for name in ("log_probs", "entropy", "values"):
        before, after = getattr(narrow, name), getattr(wide, name)
        torch.testing.assert_close(after[:, :-5], before, rtol=0, atol=TOLERANCE[policy.language_model.dtype])
        assert (after[:, -5:] == 0).all()


def test_gradients_do_not_depend_on_padding_and_are_finite(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy("gpt2").double()

    def gradient(rows: list[tuple[Tensor, ...]]) -> Tensor:
        policy.zero_grad()
        for row in rows:
            output = policy(*row, with_values=True)
            (output.log_probs.sum() + output.values.sum()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.trainable_parameters()])

    alone = [
        tuple(part[row : row + 1, mask] for part, mask in zip(demonstrations, columns, strict=True))
        for row in range(len(demonstrations.prompt_ids))
        for columns in [[demonstrations.prompt_mask[row]] * 2 + [demonstrations.response_mask[row]] * 2]
    ]
    together = gradient([tuple(demonstrations)])
    assert together.isfinite().all()
    torch.testing.assert_close(together, gradient(alone), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
        ("gemma2", {"attention_dropout": 0.5}),
    ],
)
def test_the_ratio_is_one_in_train_mode_although_the_model_has_dropout(
    make_policy: Callable[..., CausalLMPolicy],
    demonstrations: EncodedResponses,
    architecture: str,
    dropout: dict[str, float],
) -> None:
    policy = make_policy(architecture, fields=dropout, value="separate")
    assert policy.training
    first, second = (policy(*demonstrations, with_values=True) for _ in range(2))
    scored = policy.eval()(*demonstrations, with_values=True)
    assert torch.equal(first.log_probs, second.log_probs)
    assert torch.equal(first.log_probs, scored.log_probs)
    assert torch.equal(first.values, scored.values)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "gpt2", "fields": {"resid_pdrop": 0.5}},
        {"kind": "llama", "fields": {"attention_dropout": 0.5}},
        {"lora": LoraSettings(dropout=0.5)},
    ],
)
def test_keep_dropout_keeps_the_dropout(
    make_policy: Callable[..., CausalLMPolicy],
    demonstrations: EncodedResponses,
    move_weights: Callable[..., None],
    arguments: dict[str, Any],
) -> None:
    policy = make_policy(**arguments, keep_dropout=True)
    move_weights(policy)
    assert not torch.equal(policy(*demonstrations).log_probs, policy(*demonstrations).log_probs)


def test_temperature_divides_the_logits(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy()
    logits = policy.language_model(
        torch.cat([demonstrations.prompt_ids[:1], demonstrations.response_ids[:1]], dim=1),
        attention_mask=torch.cat([demonstrations.prompt_mask[:1], demonstrations.response_mask[:1]], dim=1).long(),
    ).logits
    first_token = int(demonstrations.response_ids[0, 0])
    last_of_prompt = demonstrations.prompt_ids.shape[1] - 1
    expected = (logits[0, last_of_prompt] / 0.5).log_softmax(dim=-1)[first_token]
    found = policy(*(part[:1] for part in demonstrations), temperature=0.5).log_probs[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", ["head", "separate"])
@pytest.mark.parametrize("lora", [None, LoraSettings()])
def test_recomputing_activations_changes_no_gradient(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses, value: str, lora: LoraSettings | None
) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(value=value, lora=lora, gradient_checkpointing=checkpointing).double()
        output = policy(*demonstrations, with_values=True)
        (output.log_probs.sum() + output.values.sum()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.trainable_parameters()]))
        if checkpointing:
            assert any(getattr(module, "gradient_checkpointing", False) for module in policy.language_model.modules())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_entropy_and_values_are_none_if_not_requested(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    output = make_policy()(*demonstrations)
    assert output.entropy is None
    assert output.values is None


def test_values_without_a_critic_are_refused(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy(value="none")
    assert not policy.has_values
    with pytest.raises(UserError, match=r"policy\.value: 'none'"):
        policy(*demonstrations, with_values=True)


def test_no_hook_stays_on_the_model(
    make_policy: Callable[..., CausalLMPolicy], demonstrations: EncodedResponses
) -> None:
    policy = make_policy()
    head = policy.language_model.get_output_embeddings()
    policy(*demonstrations, with_values=True)
    assert not head._forward_pre_hooks
    with pytest.raises(IndexError):
        policy(demonstrations.prompt_ids + 1000, *demonstrations[1:], with_values=True)
    assert not head._forward_pre_hooks
