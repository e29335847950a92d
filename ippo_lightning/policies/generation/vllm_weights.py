"""How vLLM gets the policy's weights: an adapter on the saved base, or all weights through a folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.errors import UserError
from ippo_lightning.policies.base_changes import has_changed_base
from ippo_lightning.policies.loading import ModelSource
from ippo_lightning.policies.merging import merged_copy
from ippo_lightning.policies.packaged_models import local_model
from ippo_lightning.policies.quantized import is_quantized
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.policies.saving import save_adapter

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts as the largest rank of an adapter."""


class HandOver(Protocol):
    """Brings the policy's present weights to an engine."""

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of `vllm.LLM` that this way needs."""

    def give(self, engine: Any, folder: Path) -> object | None:
        """Give the engine the present weights; return the `LoRARequest` of the prompts that follow, or None.

        Args:
            engine: a `vllm.LLM`.
            folder: an empty folder; the engine may read it until the prompts are answered.
        """


def hand_over_of(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, source: ModelSource, start: Path
) -> HandOver:
    """Return the way that fits the policy: its adapter if vLLM computes the same from it, else all weights.

    Args:
        model: the policy's network.
        tokenizer: saved next to the adapter.
        source: where the base comes from.
        start: an empty folder for what the engine starts from.

    Raises:
        UserError: the base is quantised, and vLLM does not get the policy from it and an adapter.
    """
    base = local_model(source.pretrained)
    if isinstance(model, PeftModel) and base is not None and is_plain_lora(model):
        return AdapterHandOver(model, tokenizer, base)
    # All weights would be those of a dense model, which is neither the size nor, after rounding, the policy.
    if is_quantized(model):
        raise UserError(
            f"sampling.sampler: vllm gets a {source.quantization} policy as its saved base and a plain LoRA adapter, "
            "and this adapter is of another kind or has changed its base; use generate or continuous"
        )
    return WeightsHandOver(model, start)


def is_plain_lora(model: PeftModel) -> bool:
    """Return whether the saved base, with the low-rank products of the adapter, is the policy.

    vLLM reads two matrices per layer and one scale, alpha / r or alpha / sqrt(r). What else an adapter may have
    (biases, magnitudes, modules of its own, scales by layer), it refuses or ignores.

    Args:
        model: the policy's network.
    """
    if has_changed_base(model):
        return False
    names = get_peft_model_state_dict(model, adapter_name=POLICY_ADAPTER)
    if not all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names):
        return False
    settings = model.peft_config[POLICY_ADAPTER].to_dict()
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and POLICY_ADAPTER in layer.scaling]
    return all(layer.scaling[POLICY_ADAPTER] == scale and layer.r[POLICY_ADAPTER] == rank for layer in layers)


class AdapterHandOver:
    """Gives the engine the policy's adapter; the base is in the engine from the start.

    Args:
        model: the policy's network.
        tokenizer: saved next to the adapter.
        base: folder or Hub name of the base.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self._count = 0

    @property
    def arguments(self) -> dict[str, object]:
        """The base, and room for one adapter."""
        rank = self.model.peft_config[POLICY_ADAPTER].to_dict()["r"]
        return {"model": self.base, "enable_lora": True, "max_lora_rank": engine_rank(rank)}

    def give(self, engine: Any, folder: Path) -> object:
        """Save the adapter and return its request; see `HandOver`."""
        from vllm.lora.request import LoRARequest

        # vLLM caches adapters by number, so changed weights need a new number.
        self._count += 1
        written = written_adapter(self.model, self.tokenizer, folder)
        return LoRARequest(f"policy_{self._count}", self._count, str(written))


class WeightsHandOver:
    """Gives the engine all weights, an adapter merged into them, through a folder that it loads in place.

    Args:
        model: the policy's network.
        start: folder for the model that the engine starts from.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, start: Path) -> None:
        self.model = model
        self.start = start
        self._write(start)

    @property
    def arguments(self) -> dict[str, object]:
        """The model as it is written here: also one that was never saved, or whose embedding was resized."""
        return {"model": str(self.start)}

    def give(self, engine: Any, folder: Path) -> None:
        """Let the engine load the present weights; see `HandOver`."""
        self._write(folder)
        # A method of vLLM's own workers, which also forgets what was computed with the weights before.
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})

    def _write(self, folder: Path) -> None:
        merged = merged_copy(self.model) if isinstance(self.model, PeftModel) else self.model
        with _saving_on_this_rank(merged):
            merged.save_pretrained(folder)


@contextmanager
def _saving_on_this_rank(model: PreTrainedModel) -> Iterator[None]:
    """Let transformers write a model on every rank: it writes on rank 0 only, and each rank has a folder of its own."""
    vars(model)["should_save_on_this_rank"] = lambda is_main_process: True
    try:
        yield
    finally:
        del vars(model)["should_save_on_this_rank"]


def engine_rank(rank: int) -> int:
    """Return the smallest rank that vLLM accepts and that is not below the adapter's; else the adapter's own.

    Args:
        rank: of the adapter.

    Example:
        >>> engine_rank(12)
        16
    """
    return next((known for known in _RANKS if known >= rank), rank)


def written_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save the policy's adapter and return the folder that directly contains its files, as vLLM requires.

    Args:
        model: the policy's network.
        tokenizer: saved next to the adapter.
        folder: created if missing.
    """
    save_adapter(model, tokenizer, folder)
    # PEFT writes an adapter that is not named "default" into a folder of its name.
    inner = folder / POLICY_ADAPTER
    return inner if (inner / "adapter_config.json").is_file() else folder
