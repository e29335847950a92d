"""The policy: a causal language model, optionally with adapters, a critic and a frozen reference."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.distributed.dtensor import full_tensor, is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.maths.log_probs import token_log_probs, token_log_probs_and_entropy
from ippo_lightning.policies.contexts import checkpoint_gradients, disable_dropout, evaluating
from ippo_lightning.policies.critic import SeparateCritic, ValueHead, captured_features, feature_size
from ippo_lightning.policies.generation.generate import Request, Samples
from ippo_lightning.policies.generation.samplers import sample_from
from ippo_lightning.policies.generation.vllm import VLLMEngine
from ippo_lightning.policies.loading import (
    ModelSource,
    add_lora,
    check_quantization,
    load_tokenizer,
    merge_adapter,
    transformers_model,
)
from ippo_lightning.policies.quantized import Quantization
from ippo_lightning.policies.reference import (
    ReferenceKind,
    prepare_reference,
    reference_active,
    resolve_reference,
)
from ippo_lightning.policies.saving import copy_parameters, full_copy, save_model
from ippo_lightning.policies.sequences import Sequences, join, response_logits, states_before
from ippo_lightning.policies.settings import LoraSettings, SamplingSettings
from ippo_lightning.policies.tokenization import stop_token_ids


class PolicyOutput(NamedTuple):
    """What one forward pass says about responses; all tensors are 0.0 off the response mask."""

    log_probs: Tensor
    """[rows, steps] nats, at the given temperature."""
    entropy: Tensor | None
    """[rows, steps] nats, of the distribution each token was drawn from; None unless asked for."""
    values: Tensor | None
    """[rows, steps] the critic's estimate before each token; None unless asked for."""


class CausalLMPolicy(nn.Module):
    """A language model that samples responses, scores them, and graders them with a critic.

    Dropout is off in train mode as well unless `keep_dropout` is true: the same weights give the same
    log-probabilities in every pass, so PPO's ratio is exactly 1 before the first update. The reference is fixed at
    construction and never changes.

    Args:
        pretrained: folder or Hub name of a saved model; this or `config`.
        config: a new model instead, for instance {"model_type": "llama", "hidden_size": 128}; the vocabulary size and
            special tokens come from the tokenizer.
        tokenizer: an object, a folder or a Hub name; by default the one saved with `pretrained`.
        seed: start of the random numbers of new weights; the caller's random numbers are left alone.
        lora: train low-rank adapters on a frozen base.
        quantization: quantise the frozen base to "nf4", "fp4" or "int8"; needs `pretrained` and `lora`. Policy, value
            head and a reference with the adapter off share the one base.
        double_quantization: of 4-bit weights, the scales too.
        compute_dtype: of products with 4-bit weights, "float32", "bfloat16" or "float16"; None for `dtype`.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        value: "head" reads the policy's own features, "separate" is a second model trained in full, "none" is no
            critic.
        value_init_std: standard deviation of the head's first weights; None is 1 / sqrt(hidden_size + 1).
        reference: "auto", "none", "copy", "adapter_off" or "adapter_copy"; see `resolve_reference`.
        gradient_checkpointing: compute activations again in the backward pass to save memory.
        attn_implementation: "eager", "sdpa", ...; None for the library's choice.
        keep_dropout: leave dropout as the model's configuration says, for instance for supervised training.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: if settings contradict each other or a file cannot be loaded.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        seed: int = 0,
        lora: LoraSettings | None = None,
        quantization: Quantization | None = None,
        double_quantization: bool = True,
        compute_dtype: str | None = None,
        dtype: str = "float32",
        value: Literal["none", "head", "separate"] = "head",
        value_init_std: float | None = None,
        reference: ReferenceKind = "auto",
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        keep_dropout: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(lora=lora, quantization=quantization, value=value, keep_dropout=keep_dropout)
        self.reference_kind = resolve_reference(reference, lora)
        self.gather_for_sampling = True
        """Whether `sample` gathers a sharded language model once, see `shard_policy`."""
        self.engine: VLLMEngine | None = None
        self.source = source = ModelSource(
            pretrained=pretrained,
            config=config,
            dtype=dtype,
            quantization=quantization,
            double_quantization=double_quantization,
            compute_dtype=compute_dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            seed=seed,
        )
        self.tokenizer = load_tokenizer(tokenizer, pretrained=pretrained, trust_remote_code=trust_remote_code)
        base = source.load(self.tokenizer)
        check_quantization(base, lora)
        self.model: PreTrainedModel | PeftModel = base if lora is None else add_lora(base, lora, seed=seed + 1)
        self.value_head: ValueHead | None = None
        self.critic: SeparateCritic | None = None
        if value == "head":
            self.value_head = ValueHead(feature_size(base), init_std=value_init_std, seed=seed + 2)
        elif value == "separate":
            trunk = source.load(self.tokenizer)
            trunk = trunk if lora is None or lora.adapter_path is None else merge_adapter(trunk, lora.adapter_path)
            self.critic = SeparateCritic(trunk, init_std=value_init_std, seed=seed + 2)
        if not keep_dropout:
            disable_dropout(self)
        self.reference_model = prepare_reference(self.reference_kind, self.model)
        if gradient_checkpointing:
            checkpoint_gradients(self.language_model)
            if self.critic is not None:
                checkpoint_gradients(self.critic.trunk)
        self.train()

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model itself, adapters inside."""
        return transformers_model(self.model)

    @property
    def device(self) -> torch.device:
        """Where the policy's weights lie."""
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and response together, that the model can read; `sys.maxsize` where it sets no limit."""
        limit = getattr(self.language_model.config.get_text_config(), "max_position_embeddings", None)
        return sys.maxsize if limit is None else int(limit)

    @property
    def has_values(self) -> bool:
        """Whether there is a critic."""
        return self.value_head is not None or self.critic is not None

    @property
    def has_reference(self) -> bool:
        """Whether there is a frozen reference."""
        return self.reference_kind != "none"

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Set train or evaluation mode; the reference stays in evaluation mode.

        Args:
            mode: True for train mode.
        """
        super().train(mode)
        if self.reference_model is not None:
            self.reference_model.eval()
        return self

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        *,
        temperature: float = 1.0,
        with_values: bool = False,
        with_entropy: Literal["differentiable", "detached"] | bool = False,
    ) -> PolicyOutput:
        """Score responses: log pi(token t | prompt, tokens before t), and the critic's value of the same state.

        Args:
            prompt_ids: [rows, prompt_tokens] int64, padded on the left.
            prompt_mask: [rows, prompt_tokens] bool.
            response_ids: [rows, steps] int64, padded on the right.
            response_mask: [rows, steps] bool.
            temperature: divides the logits; that of sampling, for PPO.
            with_values: also return the critic's values.
            with_entropy: also return the entropy; true is "differentiable", "detached" is cheaper.

        Raises:
            UserError: if values are asked for and there is no critic.
        """
        if with_values and not self.has_values:
            raise UserError("policy.value: 'none' has no values to give; use head or separate")
        sequences = join(prompt_ids, prompt_mask, response_ids, response_mask)
        num_tokens = response_ids.shape[1]
        read_features = with_values and self.value_head is not None
        features: list[Tensor] = []
        with captured_features(self.language_model, features) if read_features else nullcontext():
            logits = response_logits(self.language_model, sequences, num_tokens)
        entropy = None
        if with_entropy:
            log_probs, entropy = token_log_probs_and_entropy(
                logits=logits, ids=response_ids, temperature=temperature, detach_entropy=with_entropy == "detached"
            )
            entropy = entropy.masked_fill(~response_mask, 0.0)
        else:
            log_probs = token_log_probs(logits=logits, ids=response_ids, temperature=temperature)
        values = self._values(sequences, num_tokens, features) if with_values else None
        return PolicyOutput(
            log_probs=log_probs.masked_fill(~response_mask, 0.0),
            entropy=entropy,
            values=None if values is None else values.masked_fill(~response_mask, 0.0),
        )

    @torch.no_grad()
    def reference_log_probs(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Score responses with the frozen reference.

        Args:
            prompt_ids: [rows, prompt_tokens] int64, padded on the left.
            prompt_mask: [rows, prompt_tokens] bool.
            response_ids: [rows, steps] int64, padded on the right.
            response_mask: [rows, steps] bool.
            temperature: that of sampling.

        Returns:
            Log-probabilities, shape [rows, steps], nats, 0.0 off the mask.

        Raises:
            UserError: if the policy was built without a reference.
        """
        sequences = join(prompt_ids, prompt_mask, response_ids, response_mask)
        reference = self.reference_model if self.reference_model is not None else self.model
        with reference_active(self.reference_kind, self.model), evaluating(reference):
            logits = response_logits(transformers_model(reference), sequences, response_ids.shape[1])
        log_probs = token_log_probs(logits=logits, ids=response_ids, temperature=temperature)
        return log_probs.masked_fill(~response_mask, 0.0)

    def sample(self, prompt_ids: Tensor, prompt_mask: Tensor, settings: SamplingSettings) -> Samples:
        """Draw `settings.num_responses` responses to each prompt, without gradients and in evaluation mode.

        Args:
            prompt_ids: [prompts, prompt_tokens] int64, padded on the left.
            prompt_mask: [prompts, prompt_tokens] bool.
            settings: numbers of sampling.

        Raises:
            UserError: if prompt and response would not fit the context, or a stop token is not one token.
        """
        longest = int(prompt_mask.sum(dim=1).max())
        if longest + settings.max_new_tokens > self.context_length:
            raise UserError(
                f"sampling.max_new_tokens: {settings.max_new_tokens} after a prompt of {longest} tokens exceeds the "
                f"model's context of {self.context_length}; shorten one of them"
            )
        rows = torch.arange(len(prompt_ids), device=prompt_ids.device).repeat_interleave(settings.num_responses)
        request = Request(
            prompt_ids=prompt_ids[rows],
            prompt_mask=prompt_mask[rows],
            settings=settings,
            stop_ids=stop_token_ids(self.tokenizer, settings.stop_tokens),
            pad_id=int(self.tokenizer.pad_token_id),
        )
        return sample_from(self, request)

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of everything an optimizer should get, critic included."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return everything an optimizer should get, critic included."""
        return [parameter for _, parameter in self.named_trainable_parameters()]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of the language model, without value head or critic."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of the value head or the separate critic."""
        critic = self.value_head if self.value_head is not None else self.critic
        return [] if critic is None else [parameter for parameter in critic.parameters() if parameter.requires_grad]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return copies of the trainable parameters by name: with the constructor's arguments, all there is to save."""
        return {name: full_tensor(parameter.detach()).clone() for name, parameter in self.named_trainable_parameters()}

    def load_trainable_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put trainable parameters back.

        Args:
            state: what `trainable_state_dict` returned for a policy with the same constructor arguments.

        Raises:
            UserError: if names or shapes differ.
        """
        copy_parameters(dict(self.named_trainable_parameters()), state)

    def save_pretrained(self, folder: str | Path) -> dict[str, Path]:
        """Save the language model and tokenizer for plain transformers; see `save_model`.

        Args:
            folder: created where missing. Of a sharded policy every rank must call this, and rank 0 writes.
        """
        if not is_sharded(self.model):
            return save_model(self.model, self.tokenizer, folder)
        ordinary = full_copy(self.model)
        return {} if ordinary is None else save_model(ordinary, self.tokenizer, folder)

    def _values(self, sequences: Sequences, num_tokens: int, features: list[Tensor]) -> Tensor:
        if self.critic is not None:
            every = self.critic(**sequences._asdict())
        else:
            assert self.value_head is not None
            assert len(features) == 1, "the language-model head must run once in a forward pass"
            every = self.value_head(features[0])
        return states_before(every, num_tokens)


def _check_settings(
    *, lora: LoraSettings | None, quantization: Quantization | None, value: str, keep_dropout: bool
) -> None:
    if value not in ("none", "head", "separate"):
        raise UserError(f"policy.value: {value!r} is unknown; use none, head or separate")
    if quantization and lora is None:
        raise UserError(f"policy.quantization: {quantization} weights cannot be trained; add lora")
    if quantization and value == "separate":
        raise UserError(
            f"policy.value: 'separate' would train a second model, whose {quantization} weights cannot be; use head"
        )
    if lora is not None and lora.dropout > 0 and not keep_dropout:
        raise UserError(
            f"policy.lora.dropout: {lora.dropout} has no effect while dropout is off; set keep_dropout: true"
        )
