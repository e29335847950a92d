"""A critic that is an adapter of its own on the policy's base, with a value head: one base in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo_lightning.policies.contexts import keeping_trainable_flags, seeded
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.policies.sequences import Sequences, without_padding
from ippo_lightning.policies.settings import LoraSettings
from ippo_lightning.policies.value_head import ValueHead

CRITIC_ADAPTER = "critic"
"""Also what tells its parameters from the policy's, as a part of their names."""
_TwoContexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


class AdapterCritic:
    """Values of the base with the critic's adapter, in a forward of their own.

    No module: adapter and head are parts of the policy, which owns their parameters.

    Args:
        model: has the critic's adapter, see `add_critic_adapter`.
        head: reads the features.
    """

    def __init__(self, model: PeftModel, head: ValueHead) -> None:
        self.model = model
        self.head = head

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return the value [rows, sequence] of the text up to and including each position."""
        sequences = Sequences(input_ids, attention_mask, position_ids)
        with CriticActive(self.model):
            features = _features(transformers_model(self.model), sequences)
        values: Tensor = self.head(without_padding(features, sequences))
        return values

    def parameters(self) -> list[nn.Parameter]:
        """Return those of the adapter and of the head."""
        own = [value for name, value in self.model.named_parameters() if CRITIC_ADAPTER in name.split(".")]
        return [*own, *self.head.parameters()]


class CriticActive(AbstractContextManager[None]):
    """Activate the critic's adapter for a block, and the policy's afterwards, also after an error.

    May be entered again: a layer that checkpoints computes its activations in each backward pass.

    Args:
        model: see `add_critic_adapter`.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def __enter__(self) -> None:
        self._activate(CRITIC_ADAPTER)

    def __exit__(self, *error: object) -> None:
        self._activate(POLICY_ADAPTER)

    def _activate(self, name: str) -> None:
        # PEFT trains the adapter that it activates and freezes the others. Which ones train is decided elsewhere, and
        # the inactive one takes no part in a forward anyway.
        with keeping_trainable_flags(self.model):
            self.model.set_adapter(name)


def add_critic_adapter(model: PeftModel, settings: LoraSettings, *, seed: int) -> None:
    """Add the critic's adapter: at the same layers and of the same rank as the policy's, trained, and inactive.

    Args:
        model: with the policy's adapter, which stays active; changed in place.
        settings: of the policy's adapter.
        seed: start of the random numbers of its weights.
    """
    like: Any = model.peft_config[POLICY_ADAPTER]
    # An adapter that is continued has settings of its own; one of another kind than LoRA has none of these.
    has_own = settings.adapter_path is not None and isinstance(like, LoraConfig)
    config = LoraConfig(
        r=like.r if has_own else settings.r,
        lora_alpha=like.lora_alpha if has_own else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=like.target_modules if isinstance(like, LoraConfig) else settings.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )
    with keeping_trainable_flags(model):
        with seeded(seed):
            model.add_adapter(CRITIC_ADAPTER, config)
        model.set_adapter(POLICY_ADAPTER)
    for name, parameter in model.named_parameters():
        if CRITIC_ADAPTER in name.split("."):
            parameter.requires_grad_(True)


def checkpoint_contexts(model: PeftModel) -> Callable[[], _TwoContexts]:
    """Return what gives a checkpointed layer its contexts: in the backward pass, it needs the adapter of its forward.

    Args:
        model: see `add_critic_adapter`.
    """

    def contexts() -> _TwoContexts:
        is_critics = model.active_adapter == CRITIC_ADAPTER
        return nullcontext(), CriticActive(model) if is_critics else nullcontext()

    return contexts


def _features(network: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Return the input of the language-model head, shape [rows, sequence, width]; the head hardly runs."""
    found: list[Tensor] = []

    def at_head(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(inputs[0])
        return (inputs[0][:1, -1:], *inputs[1:])

    def at_network(_module: nn.Module, _inputs: object, _output: object) -> tuple[Tensor, ...]:
        # As the model's output: FSDP2 gathers its parameters when a gradient reaches what the forward has returned.
        return tuple(found)

    head: Any = network.get_output_embeddings()
    handles = [head.register_forward_pre_hook(at_head), network.register_forward_hook(at_network, prepend=True)]
    try:
        call: Any = network
        (features,) = call(**sequences._asdict(), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return features
