"""Tiny real models, a tokenizer of single characters, and texts of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, encode_demonstrations

CHARACTERS = "0123456789+-*=?;# abcxyz\n"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
# With the usual 0.02, models of this size predict all tokens with nearly the same probability.
SHARP = {"initializer_range": 0.2}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES, **SHARP, **GROUPED},
    "gpt2": {"model_type": "gpt2", **SIZES, **SHARP},
    "qwen2": {"model_type": "qwen2", **SIZES, **SHARP, **GROUPED},
    "gemma2": {"model_type": "gemma2", **SIZES, **SHARP, **GROUPED, "head_dim": 8, "sliding_window": 16},
}
PROMPTS = ["7+12?", "1?", "3*4-5?"]
RESPONSES = ["7+12=19;#19", "#1", "12;7"]


def character_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {name: index for index, name in enumerate(["<pad>", "<s>", "</s>", *CHARACTERS])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer()


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return character_tokenizer


@pytest.fixture
def configs() -> dict[str, dict[str, Any]]:
    return CONFIGS


@pytest.fixture
def make_policy(tokenizer: PreTrainedTokenizerFast) -> Callable[..., CausalLMPolicy]:
    """Build a policy by architecture, with more configuration fields or constructor arguments."""

    def make(kind: str = "llama", *, fields: dict[str, Any] | None = None, **arguments: Any) -> CausalLMPolicy:
        if "pretrained" not in arguments:
            arguments["config"] = {**CONFIGS[kind], **(fields or {})}
        return CausalLMPolicy(**{"tokenizer": tokenizer, **arguments})

    return make


@pytest.fixture
def demonstrations(tokenizer: PreTrainedTokenizerFast) -> EncodedResponses:
    """Three prompts and three responses, all of different lengths."""
    return encode_demonstrations(tokenizer, PROMPTS, RESPONSES, max_length=64)


@pytest.fixture
def base_folder(make_policy: Callable[..., CausalLMPolicy], tmp_path: Path) -> str:
    """A saved Llama with its tokenizer."""
    make_policy(reference="none", value="none").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def adapter_folder(base_folder: str, tmp_path: Path) -> str:
    """A saved adapter on that model, with B unequal to 0."""
    from ippo_lightning.policies import LoraSettings

    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(r=4), value="none")
    move_weights(policy)
    return str(policy.save_pretrained(tmp_path / "tuned")["adapter"])


def move_weights(policy: CausalLMPolicy, size: float = 0.1) -> None:
    """Change every trainable weight, as an optimizer would, by different amounts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(name="move_weights")
def move_weights_fixture() -> Callable[..., None]:
    return move_weights
