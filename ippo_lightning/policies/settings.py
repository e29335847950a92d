"""What a user sets about adapters and about sampling."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from ippo_lightning.errors import UserError

_SAMPLERS = ("generate", "continuous", "vllm")
_CACHES = ("dynamic", "static")


@dataclass
class LoraSettings:
    """Low-rank adapters on a frozen base model.

    Source: Hu et al. 2021, arXiv 2106.09685: W' = W + (alpha / r) * B A, with B = 0 at the start.

    Args:
        r: rank of the update.
        alpha: numerator of its scale.
        dropout: probability of dropping an adapter input while training; needs the policy's `keep_dropout`.
        target_modules: "all-linear", a regular expression, or a list of module names.
        adapter_path: folder of a saved PEFT adapter to continue from; its own r, alpha and target_modules are used.

    Raises:
        UserError: if a value is out of range.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"
    adapter_path: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"lora.r: {self.r} is not a rank; use 1 or more")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha: {self.alpha} would switch the adapter off; use more than 0")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout: {self.dropout} is not a probability; use 0 <= dropout < 1")
        if not self.target_modules:
            raise UserError(f"lora.target_modules: {self.target_modules!r} names no module; use 'all-linear' or a list")


@dataclass
class SamplingSettings:
    """How responses are drawn from the policy.

    Args:
        num_responses: responses to each prompt.
        max_new_tokens: length limit of a response, EOS included.
        temperature: divides the logits; the log-probabilities PPO uses are taken at the same temperature.
        top_p: keep the smallest set of tokens with this probability; 1.0 keeps all.
        stop_tokens: strings, each one token of the vocabulary, that end a response besides EOS.
        greedy: take the most likely token each time, for evaluation only; temperature and top_p then have no effect.
        sampler: `generate` is transformers' own loop; `continuous` its continuous batching, where a finished response
            makes room for the next; `vllm` an engine of its own (the extra `vllm`), which gets the adapter anew for
            each batch.
        cache: of keys and values, for `generate`: `dynamic` grows with the responses; `static` has its full size from
            the start, which lets transformers compile the step on a GPU.
        batch_size: responses drawn side by side, those to prompts of like length together, for `generate` and
            `continuous`; null for all.
        engine: more arguments of `vllm.LLM`, for example {"gpu_memory_utilization": 0.4}.

    Raises:
        UserError: if a value is out of range.
    """

    num_responses: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop_tokens: list[str] | None = None
    greedy: bool = False
    sampler: Literal["generate", "continuous", "vllm"] = "generate"
    cache: Literal["dynamic", "static"] = "dynamic"
    batch_size: int | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_sampler()
        if self.num_responses < 1:
            raise UserError(f"sampling.num_responses: {self.num_responses} responses to a prompt; use 1 or more")
        if self.max_new_tokens < 1:
            raise UserError(f"sampling.max_new_tokens: {self.max_new_tokens} leaves no room to answer; use 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"sampling.temperature: {self.temperature} is not above 0; for no chance use greedy: true")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"sampling.top_p: {self.top_p} is not a probability above 0; use 0 < top_p <= 1")
        if self.stop_tokens is not None and not all(self.stop_tokens):
            raise UserError(f"sampling.stop_tokens: {self.stop_tokens!r} holds an empty string; remove it")
        if self.top_p < 1.0:
            warnings.warn(
                f"sampling.top_p: {self.top_p} cuts the distribution that is sampled from, while log-probabilities are "
                "those of the whole distribution; PPO's ratio is then slightly off",
                stacklevel=2,
            )

    def _check_sampler(self) -> None:
        for name, known in (("sampler", _SAMPLERS), ("cache", _CACHES)):
            if getattr(self, name) not in known:
                raise UserError(f"sampling.{name}: {getattr(self, name)!r} is unknown; use {' or '.join(known)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"sampling.batch_size: {self.batch_size} draws nothing; use 1 or more, or null for all")
        if self.engine and self.sampler != "vllm":
            raise UserError(f"sampling.engine: {self.sampler} has no engine; remove it, or set sampler to vllm")
