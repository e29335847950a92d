"""Sample with vLLM (the extra `vllm`), which gets the policy's adapter again for each batch.

Source: Kwon et al. 2023, PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.errors import UserError
from ippo_lightning.policies.base_changes import has_changed_base
from ippo_lightning.policies.generation.request import Request, Samples, sample_in_batches
from ippo_lightning.policies.loading import ModelSource
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.policies.saving import save_adapter

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM 0.33 accepts as the largest rank of an adapter."""


class VLLMSampler:
    """Sample with an engine of its own on the base model; each batch brings the policy's present adapter.

    Args:
        model: the policy's network; it must have an adapter.
        tokenizer: saved next to the adapter.
        source: where the base comes from; it must be a saved model.
        options: more arguments of `vllm.LLM`; they override the policy's.

    Raises:
        UserError: vLLM cannot sample from this policy, is not installed, or does not start.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: ModelSource,
        options: Mapping[str, object],
    ) -> None:
        if not isinstance(model, PeftModel) or source.pretrained is None:
            raise UserError("sampling.sampler: vllm gets the adapter of a saved base; set policy.lora and pretrained")
        # PPO's ratio assumes that the sampling model and the scoring model are the same.
        if source.quantization is not None and "quantization" not in options:
            raise UserError(
                f"sampling.engine: no quantization, while the policy's base is {source.quantization}; responses would "
                "be those of another model; set engine.quantization, for example to bitsandbytes"
            )
        if has_changed_base(model):
            raise UserError(
                "sampling.sampler: vllm adds the adapter to the saved base, but loading the adapter in "
                "policy.lora.adapter_path has changed the base; use generate"
            )
        if model.peft_config[POLICY_ADAPTER].to_dict().get("modules_to_save"):
            raise UserError(
                "sampling.sampler: vllm takes low-rank changes only, and the adapter has modules of its own "
                "(modules_to_save); use generate or continuous"
            )
        # Each rank would start an engine on the GPU that its policy already fills.
        if world_size() > 1:
            raise UserError("sampling.sampler: vllm works with one process only; use generate or continuous")
        self.model = model
        self.tokenizer = tokenizer
        self._vllm, self._engine = _started(
            engine_arguments(
                base=source.pretrained,
                max_lora_rank=model.peft_config[POLICY_ADAPTER].to_dict()["r"],
                dtype=source.dtype,
                trust_remote_code=source.trust_remote_code,
                options=options,
            )
        )
        self._count = 0

    def __call__(self, request: Request) -> Samples:
        """Return one response per row; each row gets a seed from the caller's random stream.

        Args:
            request: prompts, one row per response.
        """
        return sample_in_batches(request, self._draw, network=self.model)

    def _draw(self, request: Request) -> Tensor:
        from vllm.lora.request import LoRARequest

        # vLLM caches adapters by number, so changed weights need a new number.
        self._count += 1
        # From the caller's stream, so that a resumed run samples the same responses.
        seeds = torch.randint(2**31, (len(request.prompt_ids),)).tolist()
        prompts = [
            {"prompt_token_ids": ids[mask].tolist()}
            for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)
        ]
        # vLLM reads adapters from a folder only.
        with tempfile.TemporaryDirectory(prefix="ippo_adapter_") as folder:
            written = written_adapter(self.model, self.tokenizer, Path(folder))
            outputs = self._engine.generate(
                prompts,
                [self._parameters(request, seed) for seed in seeds],
                lora_request=LoRARequest(f"policy_{self._count}", self._count, str(written)),
                use_tqdm=False,
            )
        rows = [torch.tensor(list(output.outputs[0].token_ids), dtype=torch.long) for output in outputs]
        padded = pad_sequence(rows, batch_first=True, padding_value=request.pad_id)
        return padded.to(request.prompt_ids.device)

    def _parameters(self, request: Request, seed: int) -> object:
        settings = request.settings
        return self._vllm.SamplingParams(
            # vLLM takes a temperature of 0 for greedy.
            temperature=0.0 if settings.greedy else settings.temperature,
            top_p=1.0 if settings.greedy else settings.top_p,
            top_k=0,
            seed=seed,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=request.stop_ids,
            ignore_eos=True,  # stop_token_ids already contains every EOS of tokenizer and model
            # The policy's tokenizer decodes the ids afterwards, as for every sampler.
            detokenize=False,
        )


def engine_rank(rank: int) -> int:
    """Return the smallest rank that vLLM accepts and that is not below the adapter's; else the adapter's own.

    Args:
        rank: of the adapter.

    Example:
        >>> engine_rank(12)
        16
    """
    return next((known for known in _RANKS if known >= rank), rank)


def engine_arguments(
    *, base: str, max_lora_rank: int, dtype: str, trust_remote_code: bool, options: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments of `vllm.LLM`.

    Args:
        base: folder or Hub name of the base model.
        max_lora_rank: rank of the policy's adapter.
        dtype: of the policy's weights.
        trust_remote_code: run code that comes with the model.
        options: more arguments; they override the others.
    """
    return {
        "model": base,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "enable_lora": True,
        "max_lora_rank": engine_rank(max_lora_rank),
        "enable_prefix_caching": False,  # cached keys and values would come from an earlier adapter
        **options,
    }


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


def _started(arguments: Mapping[str, object]) -> tuple[Any, Any]:
    """Return the module vllm and an engine; vLLM is imported here, because it is not always installed."""
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            "sampling.sampler: vllm is not installed; pip install 'ippo-lightning[vllm]' on a machine with a GPU, "
            "or use generate or continuous"
        ) from error
    try:
        return vllm, vllm.LLM(**arguments)
    # The engine fails in many ways: no GPU, too little memory, an unknown architecture or option.
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"sampling.engine: vLLM does not start ({reason[0][:200]})") from error
