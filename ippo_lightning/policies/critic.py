"""The critic: a head on the policy's own features or on those of an adapter of its own, or a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo_lightning.policies.adapter_critic import AdapterCritic, add_critic_adapter, checkpoint_contexts
from ippo_lightning.policies.contexts import checkpoint_gradients
from ippo_lightning.policies.loading import ModelSource, merge_adapter, transformers_model
from ippo_lightning.policies.sequences import Sequences, without_padding
from ippo_lightning.policies.settings import LoraSettings
from ippo_lightning.policies.tokenization import TextFormat
from ippo_lightning.policies.value_head import ValueHead

ValueKind = Literal["none", "head", "adapter", "separate"]


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
    model: PreTrainedModel | PeftModel,
    source: ModelSource,
    text: TextFormat,
    lora: LoraSettings | None,
    init_std: float | None,
    seed: int,
) -> tuple[ValueHead | None, AdapterCritic | SeparateCritic | None]:
    """Return the critic of a policy: a head, a head with an adapter of the critic's own, a separate model, or neither.

    Args:
        kind: "head", "adapter", "separate" or "none".
        model: the policy's network; "adapter" adds one to it.
        source: loads the trunk of a separate critic.
        text: has the policy's tokenizer.
        lora: the adapter's settings; a separate critic starts from the model that a saved adapter continues.
        init_std: see `ValueHead`.
        seed: see `ValueHead`.

    Raises:
        UserError: `init_std` is negative, or the trunk cannot be loaded.
    """
    if kind == "none":
        return None, None
    if kind in ("head", "adapter"):
        head = ValueHead(feature_size(transformers_model(model)), init_std=init_std, seed=seed)
        if kind == "head":
            return head, None
        assert isinstance(model, PeftModel), "checked by `check_policy_settings`"
        assert lora is not None, "checked there, too"
        add_critic_adapter(model, lora, seed=seed + 1)
        return head, AdapterCritic(model, head)
    # The policy's base cannot be reused: its weights are shared with the policy and carry the adapter.
    trunk = source.load(text.tokenizer)
    if lora is not None and lora.adapter_path is not None:
        trunk = merge_adapter(trunk, lora.adapter_path)
    return None, SeparateCritic(trunk, init_std=init_std, seed=seed)


def checkpoint_networks(policy: PreTrainedModel, critic: AdapterCritic | SeparateCritic | None) -> None:
    """Let the policy, and a critic with a forward of its own, compute activations again in the backward pass.

    Args:
        policy: its language model, changed in place.
        critic: of the policy.
    """
    checkpoint_gradients(
        policy, contexts=checkpoint_contexts(critic.model) if isinstance(critic, AdapterCritic) else None
    )
    if isinstance(critic, SeparateCritic):
        checkpoint_gradients(critic.trunk)


def values_of(
    head: ValueHead | None,
    critic: AdapterCritic | SeparateCritic | None,
    *,
    sequences: Sequences,
    features: list[Tensor],
) -> Tensor:
    """Return the critic's value at every position.

    Args:
        head: reads the policy's features, unless there is a critic with features of its own.
        critic: reads the text itself; None with a head alone.
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
