"""A head that is applied in blocks gives the numbers and gradients of the model's own forward, for any head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ippo_lightning.influence import influence_scores
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings, head_blocks

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
GROUPED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "initializer_range": 0.2}
LLAMA = {"model_type": "llama", **GROUPED}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {"config": LLAMA},
    "tied": {"config": {**LLAMA, "tie_word_embeddings": True}},
    "no limit of positions": {"config": {"model_type": "openai-gpt", "n_embd": 16, "n_layer": 2, "n_head": 2}},
    "soft cap": {
        "config": {"model_type": "gemma2", **GROUPED, "head_dim": 8, "final_logit_softcapping": 0.5},
    },
    "logit scale": {"config": {"model_type": "cohere", **GROUPED, "logit_scale": 0.1}},
    "logits divided": {"config": {"model_type": "granite", **GROUPED, "logits_scaling": 7.0}},
    "bias": {"config": {"model_type": "phi", **GROUPED}},
    "another order of modules": {
        "config": {"model_type": "opt", **SIZES, "ffn_dim": 24, "word_embed_proj_dim": 8, "init_std": 0.2}
    },
    "experts": {"config": {"model_type": "mixtral", **GROUPED, "output_router_logits": True}},
    "lora": {"config": LLAMA, "lora": LoraSettings(r=2)},
    "lora on the head": {"config": LLAMA, "lora": LoraSettings(r=2, target_modules=["q_proj", "lm_head"])},
    "checkpointing": {"config": LLAMA, "gradient_checkpointing": True},
    "separate critic": {"config": LLAMA, "value": "separate"},
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets the tokens of a block for a vocabulary of 28."""
    return lambda tokens: monkeypatch.setattr(head_blocks, "BLOCK_ENTRIES", 28 * tokens)


@pytest.fixture(autouse=True)
def no_fall_back() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*head in blocks")
        yield


@pytest.fixture
def build(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], CausalLMPolicy]:
    """Build the policy with one of the heads, with noise on all weights, because zeros would hide errors."""

    def make(name: str) -> CausalLMPolicy:
        policy = CausalLMPolicy(**{"tokenizer": tokenizer, "value_init_std": 0.5, **copy.deepcopy(HEADS[name])})
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        # Eager attention overflows in float64, and the fused experts have no float64 kernel.
        return policy if name in ("soft cap", "experts") else policy.double()

    return make


def outcome(policy: CausalLMPolicy, rows: EncodedResponses) -> dict[str, Tensor]:
    """Return every number of a pass, and the gradient of a mixture of them."""
    policy.zero_grad()
    output = policy(*rows, temperature=0.7, with_values=True, with_entropy=True)
    mixture = torch.arange(1.0, 1 + output.log_probs.numel()).reshape(output.log_probs.shape) / 10
    (mixture * (output.log_probs + 0.3 * output.entropy + 0.1 * output.values)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_trainable_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {
        "log_probs": output.log_probs.detach(),
        "entropy": output.entropy.detach(),
        "values": output.values.detach(),
        "reference": policy.reference_log_probs(*rows, temperature=0.7),
        **gradients,
    }


def heads_logits(policy: CausalLMPolicy) -> list[int]:
    """Return a list that grows by the number of positions of each call of the head."""
    sizes: list[int] = []
    head = policy.language_model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:-1].numel()))
    return sizes


@pytest.mark.parametrize("tokens", [2, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 7))])
@pytest.mark.parametrize("name", HEADS)
def test_blocks_change_no_number_and_no_gradient(
    build: Callable[[str], CausalLMPolicy],
    demonstrations: EncodedResponses,
    small_blocks: Callable[[int], None],
    name: str,
    tokens: int,
) -> None:
    policy = build(name)
    whole = outcome(policy, demonstrations)
    small_blocks(tokens)
    outcome(policy, demonstrations)  # tries the model on a few rows
    sizes = heads_logits(policy)
    blocks = outcome(policy, demonstrations)
    assert max(sizes) <= tokens
    exact = policy.language_model.dtype == torch.float64
    for key, expected in whole.items():
        # Sums over blocks round differently; rotary angles are in float32 either way.
        tolerance = {"rtol": 1e-9, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(blocks[key], expected, **tolerance, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", HEADS)
def test_scores_of_a_head_in_blocks_are_those_of_one_backward_per_episode(
    build: Callable[[str], CausalLMPolicy],
    demonstrations: EncodedResponses,
    small_blocks: Callable[[int], None],
    name: str,
) -> None:
    policy = build(name)
    generator = torch.Generator().manual_seed(2)
    # Some of these models have norms and positions that the hooks do not cover; the heads are linear layers.
    covered = {
        id(parameter)
        for module in policy.modules()
        if type(module) in (nn.Linear, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    direction = {
        key: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for key, parameter in policy.named_trainable_parameters()
        if id(parameter) in covered and "fc" not in key  # OPT joins rows and steps there
    }

    def losses(module: CausalLMPolicy, rows: EncodedResponses) -> Tensor:
        output = module(*rows, with_values=True, with_entropy=True)
        return (output.log_probs + 0.3 * output.entropy + 0.1 * output.values).sum(dim=1)

    expected = influence_scores(policy, losses, [demonstrations], direction, method="per_episode")
    expected_cosine = influence_scores(
        policy, losses, [demonstrations], direction, method="per_episode", normalise="cosine"
    )
    exact = policy.language_model.dtype == torch.float64
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if exact else {"rtol": 1e-4, "atol": 1e-3}
    for tokens in (1, 2, 7):
        small_blocks(tokens)
        found = influence_scores(policy, losses, [demonstrations], direction)
        torch.testing.assert_close(found, expected, **tolerance)
        cosine = influence_scores(policy, losses, [demonstrations], direction, normalise="cosine")
        torch.testing.assert_close(cosine, expected_cosine, **tolerance)


def test_a_pass_of_one_block_takes_the_models_own_forward(
    build: Callable[[str], CausalLMPolicy], demonstrations: EncodedResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build("plain")
    monkeypatch.setattr(head_blocks, "_run", None)
    outcome(policy, demonstrations)


@pytest.mark.parametrize("method", ["forward", "finite_difference"])
def test_methods_without_backward_work_on_blocks(
    build: Callable[[str], CausalLMPolicy],
    demonstrations: EncodedResponses,
    small_blocks: Callable[[int], None],
    method: str,
) -> None:
    # Some layers compute in float32 even in a float64 model, and a step fit for float64 drowns in their rounding.
    policy = build("tied").float()
    generator = torch.Generator().manual_seed(2)
    direction = {
        key: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for key, parameter in policy.named_trainable_parameters()
    }

    def losses(module: CausalLMPolicy, rows: EncodedResponses) -> Tensor:
        return module(*rows).log_probs.sum(dim=1)

    expected = influence_scores(policy, losses, [demonstrations], direction, method="per_episode")
    small_blocks(3)
    found = influence_scores(policy, losses, [demonstrations], direction, method=method)
    allowed = 2e-2 if method == "finite_difference" else 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed * float(expected.abs().max()))


class Mixed(nn.Linear):
    """A head whose logits at one position depend on the position before."""

    def forward(self, hidden: Tensor) -> Tensor:
        logits = super().forward(hidden)
        return logits + 0.1 * logits.cumsum(dim=1)


class Doubled(nn.Linear):
    """A head that needs all rows of a pass at once."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) - super().forward(hidden).mean(dim=0, keepdim=True)


@pytest.mark.parametrize("kind", [Mixed, Doubled])
def test_a_head_that_cannot_work_in_blocks_is_named_once_and_its_own_logits_are_taken(
    build: Callable[[str], CausalLMPolicy],
    demonstrations: EncodedResponses,
    small_blocks: Callable[[int], None],
    kind: type[nn.Linear],
) -> None:
    policy = build("plain")
    policy.language_model.get_output_embeddings().__class__ = kind
    whole = outcome(policy, demonstrations)
    small_blocks(2)
    with pytest.warns(UserWarning, match="LlamaForCausalLM cannot apply its head in blocks .its logits differ by"):
        policy(*demonstrations)
    blocks = outcome(policy, demonstrations)  # without a second warning, which would be an error here
    assert all(torch.equal(blocks[name], expected) for name, expected in whole.items() if name != "reference")


def test_kept_dropout_of_an_adapter_on_the_head_is_the_same_in_both_passes(
    tokenizer: PreTrainedTokenizerFast, demonstrations: EncodedResponses, small_blocks: Callable[[int], None]
) -> None:
    lora = LoraSettings(r=2, target_modules=["lm_head"], dropout=0.5)
    policy = CausalLMPolicy(config=LLAMA, tokenizer=tokenizer, lora=lora, keep_dropout=True, value="none").double()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    small_blocks(4)
    parameters = policy.trainable_parameters()

    def loss() -> Tensor:
        torch.manual_seed(3)
        return policy(*demonstrations).log_probs.sum()

    found = torch.autograd.grad(loss(), parameters)
    step, block = 1e-6, torch.arange(28.0, dtype=torch.float64)[:, None].expand_as(parameters[-1])
    with torch.no_grad():
        parameters[-1].add_(step * block)
        ahead = loss()
        parameters[-1].sub_(2 * step * block)
        behind = loss()
    assert float((found[-1] * block).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)
