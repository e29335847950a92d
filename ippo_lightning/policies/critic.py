"""The critic: a head on the policy's own features, or a model of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.errors import require_range
from ippo_lightning.policies.contexts import seeded
from ippo_lightning.policies.loading import ModelSource, merge_adapter
from ippo_lightning.policies.sequences import Sequences, without_padding
from ippo_lightning.policies.settings import LoraSettings

ValueKind = Literal["none", "head", "separate"]


class ValueHead(nn.Module):
    """One number per token: V = w . features + b, computed in float32.

    Initial weights are normal with standard deviation 1 / sqrt(hidden_size + 1) and the bias is zero, as in the value
    head described in "The N Implementation Details of RLHF with PPO" (ICLR blog track 2024).

    Args:
        hidden_size: width of the features.
        init_std: standard deviation of the initial weights; None for the default above; 0.0 starts every value at 0.
        seed: start of the random numbers of the weights.

    Raises:
        UserError: `init_std` is negative.
    """

    def __init__(self, hidden_size: int, *, init_std: float | None = None, seed: int = 0) -> None:
        super().__init__()
        std = 1.0 / math.sqrt(hidden_size + 1) if init_std is None else init_std
        require_range("policy.value_init_std", std, at_least=0)
        self.init_std = std
        with seeded(seed):
            self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
            nn.init.normal_(self.linear.weight, std=std)
            # Without it, torch's random bias would shift all first values by the same amount.
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values [rows, steps] for features [rows, steps, hidden_size]."""
        # Autocast would round the values to bfloat16; returns of a few tenths would then move in visible steps.
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
        return values


class SeparateCritic(nn.Module):
    """A transformer of its own with a value head; it is fully trained and has no parameters in common with the policy.

    Args:
        language_model: the model whose trunk becomes the critic's; its language-model head is left out.
        init_std: see `ValueHead`.
        seed: see `ValueHead`.
    """

    def __init__(self, language_model: PreTrainedModel, *, init_std: float | None = None, seed: int = 0) -> None:
        super().__init__()
        hidden_size = feature_size(language_model)
        trunk = language_model.base_model  # without the language-model head, which would train without effect
        assert isinstance(trunk, PreTrainedModel)
        self.trunk: PreTrainedModel = trunk
        self.head = ValueHead(hidden_size, init_std=init_std, seed=seed)
        # A merged adapter leaves the base frozen.
        self.trunk.requires_grad_(True)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return the value [rows, sequence] of the text up to and including each position."""
        call: Any = self.trunk
        # A cache of keys and values helps sampling only; here it would cost memory.
        sequences = Sequences(input_ids, attention_mask, position_ids)
        outputs = call(**sequences._asdict(), use_cache=False)
        values: Tensor = self.head(without_padding(outputs.last_hidden_state, sequences))
        return values


def build_critic(
    kind: ValueKind,
    *,
    base: PreTrainedModel,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    lora: LoraSettings | None,
    init_std: float | None,
    seed: int,
) -> tuple[ValueHead | None, SeparateCritic | None]:
    """Return the critic of a policy: a head, a separate model, or neither.

    Args:
        kind: "head", "separate" or "none".
        base: the policy's base model.
        source: loads the trunk of a separate critic.
        tokenizer: of the policy.
        lora: the adapter's settings; a separate critic starts from the model that a saved adapter continues.
        init_std: see `ValueHead`.
        seed: see `ValueHead`.

    Raises:
        UserError: `init_std` is negative, or the trunk cannot be loaded.
    """
    if kind == "head":
        return ValueHead(feature_size(base), init_std=init_std, seed=seed), None
    if kind == "none":
        return None, None
    # The policy's base cannot be reused: its weights are shared with the policy and carry the adapter.
    trunk = source.load(tokenizer)
    if lora is not None and lora.adapter_path is not None:
        trunk = merge_adapter(trunk, lora.adapter_path)
    return None, SeparateCritic(trunk, init_std=init_std, seed=seed)


def values_of(
    head: ValueHead | None, critic: SeparateCritic | None, *, sequences: Sequences, features: list[Tensor]
) -> Tensor:
    """Return the critic's value at every position.

    Args:
        head: reads the policy's features; None with a separate critic.
        critic: reads the text itself; None with a head.
        sequences: prompt and response.
        features: of the policy's one forward pass over these sequences, see `captured_features`.

    Returns:
        Values, shape [rows, sequence] or, for a head, as many positions as the features have.
    """
    values: Tensor
    if critic is not None:
        values = critic(**sequences._asdict())
    else:
        assert head is not None
        # A model that runs its head twice per forward would leave it open which features belong to the text.
        assert len(features) == 1, "the language-model head must run once in a forward pass"
        values = head(features[0])
    return values


def feature_size(language_model: PreTrainedModel) -> int:
    """Return the width of the language-model head's input.

    Args:
        language_model: a causal language model.
    """
    # Not the configuration's hidden_size: models with a projection before the head have another width.
    return int(language_model.get_output_embeddings().weight.shape[1])


@contextmanager
def captured_features(language_model: PreTrainedModel, features: list[Tensor]) -> Iterator[None]:
    """Append the language-model head's input to `features` in every forward pass of the block.

    The head's input is right for every architecture, unlike a hidden state by number: it comes after the final norm and
    before any cap on the logits.

    Args:
        language_model: a causal language model.
        features: grows by one tensor [rows, positions, hidden] per forward pass.
    """

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0])

    handle = language_model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        # A hook that stays would append the features of every later forward.
        handle.remove()
