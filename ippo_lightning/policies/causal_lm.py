"""The policy: a causal language model, optionally with adapters, a critic and a frozen reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.errors import UserError
from ippo_lightning.policies.adapter_critic import AdapterCritic
from ippo_lightning.policies.adapters import embedding_rows, tokenizer_of_adapter
from ippo_lightning.policies.chat import with_template
from ippo_lightning.policies.contexts import disable_dropout
from ippo_lightning.policies.critic import SeparateCritic, ValueKind, build_critic, checkpoint_networks
from ippo_lightning.policies.generation.request import Samples, build_request
from ippo_lightning.policies.generation.sampler import Sampler, build_sampler, sampler_key
from ippo_lightning.policies.loading import (
    ModelSource,
    add_lora,
    check_quantization,
    transformers_model,
)
from ippo_lightning.policies.output import PolicyOutput
from ippo_lightning.policies.parameters import TrainableParts
from ippo_lightning.policies.reference import ReferenceKind, resolve_reference, settle_reference
from ippo_lightning.policies.saving_check import save_policy
from ippo_lightning.policies.scoring import score_responses, score_with_reference
from ippo_lightning.policies.self_check import adapter_as_loaded, check_policy, trial_forward
from ippo_lightning.policies.sequences import join
from ippo_lightning.policies.settings import LoraSettings, SamplingSettings, check_policy_settings
from ippo_lightning.policies.start import start_of
from ippo_lightning.policies.tokenization import TextFormat
from ippo_lightning.policies.tokenizer_loading import eos_ids_of, keep_eos_ids, load_tokenizer
from ippo_lightning.policies.train_mode import quieten
from ippo_lightning.policies.value_head import ValueHead
from ippo_lightning.records.finite_weights import require_finite_weights, trainable_weights
from ippo_lightning.storage.quantized_loading import Quantization


class CausalLMPolicy(TrainableParts):
    """A language model that samples responses, scores them, and estimates their values with a critic.

    Dropout is off in train mode as well unless `keep_dropout` is true: the same weights give the same
    log-probabilities in every pass, so PPO's ratio is exactly 1 before the first update. The reference is fixed at
    construction and never changes.

    Args:
        pretrained: folder or Hub name of a saved model, or `package:NAME`; this or `config`.
        start_from: folder of a run whose model, or whose adapter on `pretrained`, is continued; in a YAML, `sft` is the
            SFT run with the same task and model.
        config: a new model instead, for instance {"model_type": "llama", "hidden_size": 128}; the vocabulary size and
            special tokens come from the tokenizer.
        tokenizer: an object, a folder or a Hub name; by default the one saved with the adapter that `lora` continues,
            else the one saved with `pretrained`.
        pad_token: fills rows, one of the vocabulary's tokens; None for the tokenizer's own, or EOS if it has none.
        chat_template: true to write prompts with the tokenizer's chat template, a Jinja text or the path of one for
            another; false to continue prompts as they are.
        system_prompt: of prompts without a system message; None for the template's own default text. An empty text
            gives an empty system message; a `chat_template` of your own can leave it out.
        special_tokens: "strip" leaves special tokens out of responses as text, "keep" leaves out EOS, BOS and padding
            only, so that the reward sees tags such as `<think>`.
        seed: start of the random numbers of new weights; the caller's random numbers do not change.
        lora: train low-rank adapters on a frozen base.
        quantization: quantise the frozen base to "nf4", "fp4" or "int8"; needs `pretrained` and `lora`. Policy, value
            head and a reference with the adapter off use the same base.
        double_quantization: quantise the scales of 4-bit weights too.
        compute_dtype: of products with 4-bit weights, "float32", "bfloat16" or "float16"; None for `dtype`.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        value: "head" reads the policy's own features, "adapter" has a second adapter on the same base, "separate" is a
            second model that trains in full, "none" is no critic.
        value_init_std: standard deviation of the head's first weights; None is 1 / sqrt(hidden_size + 1).
        reference: "auto", "none", "copy", "adapter_off" or "adapter_copy"; see `resolve_reference`.
        gradient_checkpointing: compute activations again in the backward pass to save memory.
        attn_implementation: "eager", "sdpa", ...; None for the library's choice.
        keep_dropout: keep the dropout of the model's configuration, for instance for supervised training.
        self_check: check the new policy on a few short rows, and saved models too; see `check_policy`.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: settings contradict each other, or a file cannot be loaded.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        start_from: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        pad_token: str | None = None,
        chat_template: bool | str = False,
        system_prompt: str | None = None,
        special_tokens: Literal["strip", "keep"] = "strip",
        seed: int = 0,
        lora: LoraSettings | None = None,
        quantization: Quantization | None = None,
        double_quantization: bool = True,
        compute_dtype: str | None = None,
        dtype: str = "float32",
        value: ValueKind = "head",
        value_init_std: float | None = None,
        reference: ReferenceKind = "auto",
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        keep_dropout: bool = False,
        self_check: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        given = locals()
        super().__init__()
        self.arguments = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        """Those of the constructor: with its weights, they make the same policy again."""
        check_policy_settings(lora=lora, quantization=quantization, value=value, keep_dropout=keep_dropout)
        pretrained, config, lora = start_of(start_from, pretrained=pretrained, config=config, lora=lora)
        self.reference_kind = resolve_reference(reference, lora)
        self.gather_for_sampling = True
        """Whether `sample` gathers a sharded language model once, see `shard_policy`."""
        self.quiet_training, self.context_limit = False, sys.maxsize  # what `check_policy` finds changes them
        self.self_check = self_check
        # Samplers are not modules, so neither the module tree nor the state dict contains them.
        self._samplers: dict[tuple[str | int, ...], Sampler] = {}
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
            adapter_path=None if lora is None else lora.adapter_path,
        )
        found = load_tokenizer(
            tokenizer_of_adapter(source.adapter_path) if tokenizer is None else tokenizer,
            pretrained=pretrained,
            trust_remote_code=trust_remote_code,
            pad_token=pad_token,
        )
        self.tokenizer = with_template(found, chat_template)
        base = source.load(self.tokenizer)
        self.text = TextFormat(
            tokenizer=self.tokenizer,
            eos_ids=eos_ids_of(base),
            embedding_rows=embedding_rows(base),
            chat_template=chat_template is not False,
            system_prompt=system_prompt,
            special_tokens=special_tokens,
        )
        keep_eos_ids(base, self.text.end_ids)
        check_quantization(base, lora)
        # Base, adapter and critic have seeds of their own: adding one of them does not change the others' weights.
        self.model: PreTrainedModel | PeftModel = base if lora is None else add_lora(base, lora, seed=seed + 1)
        as_loaded = adapter_as_loaded(self, lora.adapter_path) if self_check and lora else None
        self.value_head: ValueHead | None
        self.critic: AdapterCritic | SeparateCritic | None
        self.value_head, self.critic = build_critic(
            value, model=self.model, source=source, text=self.text, lora=lora, init_std=value_init_std, seed=seed + 2
        )
        if not keep_dropout:
            disable_dropout(self)
        # After the dropout: a copied reference must compute what the policy computes.
        self.reference_kind, self.reference_model = settle_reference(
            reference, self.reference_kind, self.model, trial_forward(self)
        )
        if gradient_checkpointing:  # not for a copied reference, which never runs a backward pass
            checkpoint_networks(self.language_model, self.critic)
        self.train()
        if self_check:
            check_policy(self, keep_dropout=keep_dropout, as_loaded=as_loaded)

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model, with its adapters inside."""
        return transformers_model(self.model)

    @property
    def device(self) -> torch.device:
        """The device of the policy's weights."""
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and response together, that the model can read; `sys.maxsize` if it has no limit."""
        # a multimodal model keeps this limit in the configuration of its text part
        limit = getattr(self.language_model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.context_limit, sys.maxsize if limit is None else int(limit))

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
        if self.quiet_training:
            quieten(self.model, self.critic)  # the trunk of a critic is a model of the same kind
        # with kept dropout, a reference in train mode would give random log-probabilities
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
            UserError: values are requested and there is no critic.
        """
        if with_values and not self.has_values:
            raise UserError("policy.value: 'none' gives no values; use head or separate")
        return score_responses(
            self.language_model,
            join(prompt_ids, prompt_mask, response_ids, response_mask, limit=self.context_length),
            response_ids=response_ids,
            response_mask=response_mask,
            temperature=temperature,
            with_entropy=with_entropy,
            critic=(self.value_head, self.critic) if with_values else None,
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
            Log-probabilities, shape [rows, steps], nats, 0.0 where the mask is False.

        Raises:
            UserError: the policy has no reference.
        """
        return score_with_reference(
            self.reference_kind,
            self.model,
            self.reference_model,
            join(prompt_ids, prompt_mask, response_ids, response_mask, limit=self.context_length),
            response_ids=response_ids,
            response_mask=response_mask,
            temperature=temperature,
        )

    def sample(
        self, prompt_ids: Tensor, prompt_mask: Tensor, settings: SamplingSettings, counts: Tensor | None = None
    ) -> Samples:
        """Sample responses to each prompt, without gradients and in evaluation mode.

        Args:
            prompt_ids: [prompts, prompt_tokens] int64, padded on the left.
            prompt_mask: [prompts, prompt_tokens] bool.
            settings: how to sample.
            counts: [prompts] int64, responses per prompt; 0 is allowed for some prompts, not for all. None for
                `settings.num_responses` responses to each prompt.

        Returns:
            All responses to the first prompt, then all responses to the second, and so on.

        Raises:
            UserError: prompt and response do not fit the context, a stop token is not one token, the counts are wrong,
                or the sampler does not support this policy.
            FloatingPointError: a weight or the logits are NaN or infinite.
        """
        # Every sampler reads the weights: vLLM gets a copy, and continuous batching draws in another thread.
        require_finite_weights(trainable_weights(self), before="sampling")
        request = build_request(
            prompt_ids,
            prompt_mask,
            settings=settings,
            counts=counts,
            text=self.text,
            context_length=self.context_length,
        )
        return self._sampler(settings)(request)

    def _sampler(self, settings: SamplingSettings) -> Sampler:
        key = sampler_key(self, settings)
        if key not in self._samplers:
            self._samplers[key] = build_sampler(self, settings)
        return self._samplers[key]

    def __getstate__(self) -> dict[str, object]:
        # A copied or pickled policy starts without samplers: an engine can be neither copied nor shared.
        return {**self.__dict__, "_samplers": {}}

    def save_pretrained(self, folder: str | Path) -> dict[str, Path]:
        """Save the language model and tokenizer for plain transformers; see `save_policy`.

        Args:
            folder: created if missing. If the policy is sharded, every rank must call this, and rank 0 writes.

        Returns:
            Folders by name, see `save_model`; empty on a rank that wrote nothing.

        Raises:
            UserError: what was saved, loaded again, does not compute what the policy computes.
        """
        return save_policy(self, Path(folder))
