"""Tiny language models with random weights and a loss like that of a policy, for tests."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 37
PAD = 0
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2}
_COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
LORA_TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "o_proj", "gate_proj"],
    "gemma2": ["q_proj", "up_proj"],
    "phi3": ["qkv_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


@dataclass(frozen=True)
class Batch:
    """Episodes with padding on the left (prompts) and on the right (responses), and one factor per loss."""

    ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    factors: Tensor

    def rows(self, index: list[int]) -> Batch:
        return replace(self, **{name: getattr(self, name)[index] for name in vars(self)})


def language_model(
    family: str, *, attention: str = "sdpa", tied: bool = False, dtype: torch.dtype = torch.float64, width: int = 16
) -> nn.Module:
    attention = "eager" if family == "gemma2" else attention
    common = {**_COMMON, "tie_word_embeddings": tied, "attn_implementation": attention}
    if family == "gpt2":
        sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 32}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **common))
    else:
        kinds = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "gemma2": (Gemma2Config, Gemma2ForCausalLM),
            "phi3": (Phi3Config, Phi3ForCausalLM),
        }
        config_class, model_class = kinds[family]
        sizes = {**_SIZES, "hidden_size": width, "intermediate_size": width * 3 // 2}
        extra = {"head_dim": 8, "sliding_window": 8} if family == "gemma2" else {}
        model = model_class(config_class(**sizes, num_key_value_heads=1, **extra, **common))
    return scrambled(model.to(dtype))


def scrambled(model: nn.Module) -> nn.Module:
    """Add noise to every parameter, because zeros (biases, LoRA's B) and ones (norms) would hide errors."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((0.2 * noise).to(parameter.dtype))
    return model


def with_lora(model: nn.Module, family: str, **options: object) -> nn.Module:
    dtype = next(model.parameters()).dtype
    config = LoraConfig(r=3, lora_alpha=6, target_modules=LORA_TARGETS[family], **options)
    adapted = get_peft_model(model, config).to(dtype)
    frozen_values = {name: p.detach().clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    scrambled(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in frozen_values:
                parameter.copy_(frozen_values[name])
    return adapted


def a_batch(
    episodes: int = 5, *, seed: int = 11, dtype: torch.dtype = torch.float64, left_padding: bool = True
) -> Batch:
    """Return prompts of up to 4 tokens and responses of up to 6, padded on both sides, with losses of both signs.

    Without left padding all prompts have 4 tokens. Eager attention in float64 requires that: the float64 minimum in its
    mask becomes minus infinity in the float32 softmax, so a row that attends to nothing is NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (episodes, 10), generator=generator)
    prompt = torch.randint(1, 5, (episodes,), generator=generator)
    prompt = prompt if left_padding else torch.full_like(prompt, 4)
    response = torch.randint(1, 7, (episodes,), generator=generator)
    columns = torch.arange(10)
    real = (columns >= (4 - prompt)[:, None]) & (columns < (4 + response)[:, None])
    factors = torch.randn(episodes, generator=generator, dtype=torch.float64).to(dtype)
    return Batch(ids.masked_fill(~real, PAD), real, real & (columns >= 4), factors)


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the terms of each episode's loss, one per predicted token."""
    position_ids = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    logits = model(
        input_ids=batch.ids, attention_mask=batch.attention_mask.long(), position_ids=position_ids, use_cache=False
    ).logits
    log_probs = logits[:, :-1].log_softmax(-1).gather(2, batch.ids[:, 1:, None]).squeeze(2)
    mask = batch.response_mask[:, 1:]
    return -batch.factors[:, None] * log_probs.masked_fill(~mask, 0.0) / mask.sum(1, keepdim=True)


def episode_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return a factor times the mean negative log-likelihood of each response."""
    return token_losses(model, batch).sum(1)


def validation_loss(model: nn.Module, batch: Batch) -> Tensor:
    return episode_losses(model, replace(batch, factors=torch.ones_like(batch.factors))).mean()


def a_direction(model: nn.Module, *, seed: int = 5) -> dict[str, Tensor]:
    """Return a random direction, so that every trainable parameter counts in every test."""
    generator = torch.Generator().manual_seed(seed)
    double = {torch.float64: torch.float64}
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(double.get(p.dtype, torch.float32))
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def scores_by_definition(model: nn.Module, losses: object, batch: object, direction: dict[str, Tensor]) -> Tensor:
    """Return scores from plain `.backward()` on a copy, one row at a time, without code of the library."""
    scores = []
    copied = copy.deepcopy(model).eval()
    for row in range(len(losses(copied, batch))):
        copied.zero_grad(set_to_none=True)
        losses(copied, batch)[row].backward()
        pairs = [(p.grad, direction[name]) for name, p in copied.named_parameters() if p.grad is not None]
        scores.append(sum((gradient.to(block.dtype) * block).sum() for gradient, block in pairs))
    return torch.stack(scores)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error as a fraction of the largest score."""
    return float((actual - expected).abs().max() / expected.abs().max())
