"""What a model computes for padding is never a number of a loss, a gradient or a score, not even if it is NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_parts import prepared, tiny_module
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores
from ippo_lightning.policies import (
    CausalLMPolicy,
    EncodedResponses,
    LoraSettings,
    SamplingSettings,
    head_blocks,
)
from ippo_lightning.records import Minibatch

SIZES = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
LLAMA = {**SIZES, "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"config": LLAMA},
    "tied": {"config": {**LLAMA, "tie_word_embeddings": True}},
    "gpt2": {"config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}},
    "lora on the head": {"config": LLAMA, "lora": LoraSettings(r=2, target_modules=["q_proj", "lm_head"])},
    "separate critic": {"config": LLAMA, "value": "separate"},
}


def losses(policy: CausalLMPolicy, encoded: EncodedResponses) -> Tensor:
    """A loss that reads everything a pass gives."""
    output = policy(*encoded, with_values=True, with_entropy=True)
    return (output.log_probs + 0.3 * output.entropy + output.values).sum(dim=1)


def gradients(policy: CausalLMPolicy, encoded: EncodedResponses) -> dict[str, Tensor]:
    policy.zero_grad(set_to_none=True)
    losses(policy, encoded).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}


def break_padding(trunk: nn.Module, encoded: EncodedResponses, value: float) -> None:
    """Let a trunk return a value at each position of padding, as one whose last layer overflows there."""
    kept = torch.cat([encoded.prompt_mask, encoded.response_mask], dim=1)[..., None]

    def breaks(_module: nn.Module, _inputs: object, output: Any) -> Any:
        hidden = output.last_hidden_state
        if hidden.shape[:2] != kept.shape[:2]:  # a block of the head, in which the trunk only answers
            return output
        return replace(output, last_hidden_state=torch.where(kept, hidden, torch.full_like(hidden, value)))

    trunk.register_forward_hook(breaks)


@pytest.mark.parametrize("tokens_of_block", [2**20, 3], ids=["whole", "in blocks"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_state_of_padding_that_is_no_number_changes_no_loss_gradient_or_score(
    name: str,
    value: float,
    tokens_of_block: int,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: EncodedResponses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_blocks, "BLOCK_ENTRIES", len(tokenizer) * tokens_of_block)
    policy = CausalLMPolicy(tokenizer=tokenizer, value_init_std=0.5, self_check=False, **POLICIES[name])
    assert not demonstrations.prompt_mask.all()
    assert not demonstrations.response_mask.all()
    direction = {name: torch.ones_like(parameter) for name, parameter in policy.named_trainable_parameters()}
    with torch.no_grad():
        expected_losses = losses(policy, demonstrations)
    expected = gradients(policy, demonstrations)
    expected_scores = influence_scores(policy, losses, [demonstrations], direction)
    break_padding(policy.language_model.base_model, demonstrations, value)
    if policy.critic is not None:
        break_padding(policy.critic.trunk, demonstrations, value)
    with torch.no_grad():
        assert torch.equal(losses(policy, demonstrations), expected_losses)
    found = gradients(policy, demonstrations)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(influence_scores(policy, losses, [demonstrations], direction), expected_scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["log_probs", "ref_log_probs", "values", "rewards", "advantages", "returns"])
def test_a_stored_number_of_padding_reaches_neither_loss_nor_gradient(field: str, value: float) -> None:
    module = tiny_module(entropy_coef=0.1)
    episodes = prepared(module)
    assert not episodes.mask.all()
    filled = getattr(episodes, field).masked_fill(~episodes.mask, value)

    def loss_and_gradient(rows: Any) -> tuple[Tensor, list[Tensor]]:
        ones = torch.ones(len(rows))
        batch = Minibatch(
            episodes=rows, weights=ones, value_weights=ones, policy_denominator=16.0, value_denominator=16.0
        )
        loss, sums = module.minibatch_loss(batch)
        assert all(torch.isfinite(number) for number in sums.values())
        return loss, list(torch.autograd.grad(loss, list(module.trained_parameters().values())))

    expected, found = loss_and_gradient(episodes), loss_and_gradient(episodes.evolve(**{field: filled}))
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(*pair) for pair in zip(found[1], expected[1], strict=True))
    assert torch.equal(module.episode_losses(episodes.evolve(**{field: filled})), module.episode_losses(episodes))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_an_embedding_of_padding_that_is_no_number_is_noticed_when_the_policy_is_built(
    family: str, configs: dict[str, dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It reaches real tokens inside attention, as 0 * NaN, which only the model's own code could prevent."""
    policy = CausalLMPolicy(config=configs[family], tokenizer=tokenizer, value="none", reference="none")
    with torch.no_grad():
        policy.language_model.get_input_embeddings().weight[tokenizer.pad_token_id] = math.nan
    policy.self_check = False
    policy.language_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError):
        CausalLMPolicy(pretrained=str(tmp_path), value="none", reference="none")


@pytest.mark.parametrize("sampler", ["generate", "continuous"])
def test_a_tokenizer_without_a_pad_token_fills_rows_with_eos(
    sampler: str, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    named = CausalLMPolicy(config=LLAMA, tokenizer=make_tokenizer(pad_token="</s>"))
    without = CausalLMPolicy(config=LLAMA, tokenizer=make_tokenizer(pad_token=None))
    assert without.tokenizer.pad_token_id is None
    settings = SamplingSettings(max_new_tokens=5, num_responses=2, sampler=sampler)
    samples = []
    for policy in (named, without):
        prompts = policy.text.encode_prompts(["7+12?", "1?"], max_length=32)
        torch.manual_seed(1)
        samples.append(policy.sample(*prompts, settings))
    assert torch.equal(samples[0].response_ids, samples[1].response_ids)
    assert torch.equal(samples[0].response_mask, samples[1].response_mask)
