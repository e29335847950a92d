"""The user's settings of adapters and of sampling."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from ippo_lightning.errors import UserError, require_range

_SAMPLERS = ("generate", "continuous", "vllm")
_CACHES = ("dynamic", "static")
_DTYPES = ("bfloat16", "float16", None)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters on a frozen base model.

    Source: Hu et al. 2021, arXiv 2106.09685: W' = W + (alpha / r) * B A, with B = 0 at the start.

    Args:
        r: rank of the update.
        alpha: numerator of its scale.
        dropout: probability of dropping an adapter input during training; needs the policy's `keep_dropout`.
        target_modules: "all-linear", a regular expression, or a list of module names.
        adapter_path: folder of a saved PEFT adapter to continue from; its own r, alpha and target_modules are used.

    Raises:
        UserError: a value is out of range.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"
    adapter_path: str | None = None

    def __post_init__(self) -> None:
        require_range("lora.r", self.r, at_least=1, integer=True)
        # alpha = 0 multiplies the adapter by 0: training would change nothing, without any error
        require_range("lora.alpha", self.alpha, above=0, below=math.inf)
        require_range("lora.dropout", self.dropout, at_least=0, below=1)
        if not self.target_modules:
            raise UserError(f"lora.target_modules: {self.target_modules!r} names no module; use 'all-linear' or a list")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How responses are sampled from the policy.

    Args:
        num_responses: responses per prompt.
        max_new_tokens: most tokens per response, EOS included.
        temperature: divides the logits; PPO's log-probabilities are taken at the same temperature. It must be at
            least 1e-4; for the most likely tokens set `greedy`.
        top_p: keep the smallest set of tokens with this probability; 1.0 keeps all.
        stop_tokens: strings that end a response besides EOS; each must be one token of the vocabulary.
        stop_strings: texts of any length that end a response too, for instance "Question:". The response
            ends with the token in which the text is complete, whatever else that token contains.
        greedy: take the most likely token each time, for evaluation only; temperature and top_p then have no effect.
        sampler: `generate` is transformers' own loop; `continuous` is its continuous batching, where a finished
            response makes room for the next one; `vllm` is an engine of its own (the extra `vllm`), which gets the
            policy's weights again for each rollout.
        cache: of keys and values, for `generate`: `dynamic` grows with the responses; `static` has its full size from
            the start, so that transformers can compile the step on a GPU.
        batch_size: responses that are sampled at the same time, those to prompts of similar length together; null for
            all.
        engine: more arguments of `vllm.LLM`, for example {"gpu_memory_utilization": 0.4}.
        dtype: "bfloat16" to sample in half precision from weights that stay as they are: `generate` runs under
            autocast, `vllm` has weights of this type. Log-probabilities are still scored in the policy's own precision.
            None for the policy's own.

    Raises:
        UserError: a value is out of range.
    """

    num_responses: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop_tokens: list[str] | None = None
    stop_strings: list[str] | None = None
    greedy: bool = False
    sampler: Literal["generate", "continuous", "vllm"] = "generate"
    cache: Literal["dynamic", "static"] = "dynamic"
    batch_size: int | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["bfloat16", "float16"] | None = None

    @property
    def reports_log_probs(self) -> bool:
        """Whether the sampler returns log-probs of its own, whose gap to the policy's is logged."""
        return self.sampler == "vllm" or self.dtype is not None

    def __post_init__(self) -> None:
        self._check_sampler()
        require_range("sampling.num_responses", self.num_responses, at_least=1, integer=True)
        require_range("sampling.max_new_tokens", self.max_new_tokens, at_least=1, integer=True)
        # The logits are divided by it: near 0 they overflow, and infinity gives every token the same probability.
        require_range("sampling.temperature", self.temperature, at_least=1e-4, below=math.inf)
        require_range("sampling.top_p", self.top_p, above=0, at_most=1)
        for name in ("stop_tokens", "stop_strings"):
            texts = getattr(self, name)
            if texts is not None and not all(texts):
                raise UserError(f"sampling.{name}: {texts!r} contains an empty string; remove it")
        # A warning and no error, because top_p is right for an evaluation.
        if self.top_p < 1.0:
            warnings.warn(
                f"sampling.top_p: {self.top_p} cuts the distribution of the samples, while log-probabilities are those "
                "of the full distribution; PPO's ratio is then slightly wrong",
                stacklevel=2,
            )

    def require_random(self, field: str) -> None:
        """Refuse settings that give the same response each time.

        Args:
            field: of these settings.

        Raises:
            UserError: `greedy` is set.
        """
        if self.greedy:  # all responses to a prompt would be equal, and not drawn from what the log-probs describe
            raise UserError(f"{field}.greedy: true is for evaluation; set it in model.evaluation, and false here")

    def _check_sampler(self) -> None:
        for name, known in (("sampler", _SAMPLERS), ("cache", _CACHES), ("dtype", _DTYPES)):
            if getattr(self, name) not in known:
                words = " or ".join("null" if word is None else word for word in known)
                raise UserError(f"sampling.{name}: {getattr(self, name)!r} is unknown; use {words}")
        # Its passes run in a thread of their own, which autocast does not reach.
        if self.dtype is not None and self.sampler == "continuous":
            raise UserError(f"sampling.dtype: {self.dtype} has no effect on continuous; use generate or vllm")
        # Under autocast, keys and values have two types, and a static cache has room for one.
        if self.dtype is not None and self.sampler == "generate" and self.cache == "static":
            raise UserError(
                f"sampling.dtype: {self.dtype} needs another cache than static; set sampling.cache to dynamic"
            )
        if self.batch_size is not None:
            require_range("sampling.batch_size", self.batch_size, at_least=1, integer=True)
        # An option without effect is a misunderstanding that the user should learn about before a long run.
        if self.engine and self.sampler != "vllm":
            raise UserError(f"sampling.engine: {self.sampler} has no engine; remove it, or set sampler to vllm")


def check_policy_settings(
    *, lora: LoraSettings | None, quantization: str | None, value: str, keep_dropout: bool
) -> None:
    """Refuse settings of a policy that contradict each other.

    Args:
        lora: the adapter's settings, if any.
        quantization: kind of the base's weights, or None.
        value: kind of the critic.
        keep_dropout: whether dropout stays on.

    Raises:
        UserError: the critic is unknown, quantised weights would have to train, or a dropout has no effect.
    """
    if value not in ("none", "head", "adapter", "separate"):
        raise UserError(f"policy.value: {value!r} is unknown; use none, head, adapter or separate")
    if value == "adapter" and lora is None:
        raise UserError(
            "policy.value: 'adapter' is a second adapter on a frozen base; add lora, or use head or separate"
        )
    if quantization and lora is None:
        raise UserError(f"policy.quantization: {quantization} weights cannot be trained; add lora")
    if quantization and value == "separate":
        raise UserError(
            f"policy.value: 'separate' would train a second model, whose {quantization} weights cannot be trained; "
            "use head or adapter"
        )
    # Refused instead of ignored: the user would believe that the adapter is regularised.
    if lora is not None and lora.dropout > 0 and not keep_dropout:
        raise UserError(
            f"policy.lora.dropout: {lora.dropout} has no effect while dropout is off; set keep_dropout: true"
        )
