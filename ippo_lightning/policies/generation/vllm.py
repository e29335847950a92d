"""Draw responses with vLLM (the extra `vllm`), which gets the policy's adapter anew for each batch.

Source: Kwon et al. 2023, PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ippo_lightning.errors import UserError
from ippo_lightning.policies.generation.generate import Request

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes as the largest rank of an adapter."""


def engine_rank(rank: int) -> int:
    """Return the smallest rank that vLLM knows and that holds the adapter's; the adapter's own where it is larger.

    Example:
        >>> engine_rank(12)
        16
    """
    return next((known for known in _RANKS if known >= rank), rank)


def engine_arguments(
    *, base: str, max_lora_rank: int, dtype: str, trust_remote_code: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`; see `VLLMEngine`."""
    return {
        "model": base,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "enable_lora": True,
        "max_lora_rank": engine_rank(max_lora_rank),
        "enable_prefix_caching": False,  # keys and values of another adapter
        **options,
    }


class VLLMEngine:
    """One engine on the base model; adapters come and go.

    Args:
        base: folder or Hub name of the base model.
        max_lora_rank: of the policy's adapter.
        dtype: of the policy's weights.
        trust_remote_code: run code that comes with the model.
        options: more arguments of `vllm.LLM`; they win.

    Raises:
        UserError: vLLM is not installed, or does not start.
    """

    def __init__(
        self, *, base: str, max_lora_rank: int, dtype: str, trust_remote_code: bool, options: Mapping[str, Any]
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                "sampling.sampler: vllm is not installed; pip install 'ippo-lightning[vllm]' on a machine with a GPU, "
                "or use generate or continuous"
            ) from error
        self._vllm: Any = vllm
        arguments = engine_arguments(
            base=base,
            max_lora_rank=max_lora_rank,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            options=options,
        )
        try:
            self._engine = vllm.LLM(**arguments)
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UserError(f"sampling.engine: vLLM does not start ({reason[0][:200]})") from error
        self._count = 0

    def responses(self, request: Request, *, save_adapter: Callable[[Path], Path]) -> Tensor:
        """Sample from the base with the policy's present adapter.

        Args:
            request: what is to be drawn; each row gets a seed from the caller's random stream.
            save_adapter: writes the adapter into a folder and returns where it lies.

        Returns:
            Response ids [rows, tokens] int64.
        """
        from vllm.lora.request import LoRARequest

        self._count += 1
        seeds = torch.randint(2**31, (len(request.prompt_ids),)).tolist()
        prompts = [
            {"prompt_token_ids": ids[mask].tolist()}
            for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)
        ]
        with tempfile.TemporaryDirectory(prefix="ippo_adapter_") as folder:
            adapter = LoRARequest(f"policy_{self._count}", self._count, str(save_adapter(Path(folder))))
            outputs = self._engine.generate(
                prompts,
                [self._parameters(request, seed) for seed in seeds],
                lora_request=adapter,
                use_tqdm=False,
            )
        rows = [torch.tensor(list(output.outputs[0].token_ids), dtype=torch.long) for output in outputs]
        padded = pad_sequence(rows, batch_first=True, padding_value=request.pad_id)
        return padded.to(request.prompt_ids.device)

    def _parameters(self, request: Request, seed: int) -> Any:
        settings = request.settings
        return self._vllm.SamplingParams(
            temperature=0.0 if settings.greedy else settings.temperature,
            top_p=1.0 if settings.greedy else settings.top_p,
            top_k=0,
            seed=seed,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=request.stop_ids,
            ignore_eos=True,  # the ids that end a response are all named
            detokenize=False,
        )
