"""Draw responses by transformers' continuous batching: a finished response makes room for the next."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.generation.generate import Request, generation_config, own_generation_settings_aside

_PAGE = 32
"""Tokens of a page of keys and values."""
_PASS = 4096
"""Tokens of one forward, at the most, prompts included."""
_STOP = 30.0
"""Seconds to wait for the thread that generates."""


@torch.no_grad()
def continuous_responses(language_model: PreTrainedModel, request: Request) -> Tensor:
    """Sample with continuous batching over paged keys and values.

    One number of the caller's random stream seeds the draws, and all requests wait before the first pass, so that they
    are scheduled alike each time: the same stream gives the same responses.

    Args:
        language_model: the policy's network.
        request: a batch.

    Returns:
        Response ids [rows, tokens] int64.

    Raises:
        UserError: generation failed; the library's reason is named.
    """
    prompts = [ids[mask].tolist() for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)]
    device = request.prompt_ids.device
    seed = int(torch.randint(2**31, ()))
    cuda = [device] if device.type == "cuda" else []
    model: Any = language_model
    with (
        torch.random.fork_rng(devices=cuda),  # the library sets the seed of everything
        evaluating(language_model),
        own_generation_settings_aside(language_model),
    ):
        manager = model.init_continuous_batching(
            generation_config=generation_config(request),
            continuous_batching_config=_configuration(prompts, request.settings.max_new_tokens, seed=seed),
        )
        try:
            names = manager.add_requests(inputs=prompts, max_new_tokens=request.settings.max_new_tokens)
            manager.start()
            found = _collected(manager, len(prompts))
        finally:
            manager.stop(block=True, timeout=_STOP)
            manager.destroy()
    rows = [torch.tensor(found[name], dtype=torch.long, device=device) for name in names]
    return pad_sequence(rows, batch_first=True, padding_value=request.pad_id)


def _configuration(prompts: list[list[int]], max_new_tokens: int, *, seed: int) -> ContinuousBatchingConfig:
    """Return a cache that holds what is asked for, and not most of the device's memory."""
    longest = max(len(prompt) for prompt in prompts)
    return ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=math.ceil((longest + max_new_tokens) / _PAGE) * len(prompts) + 1,
        max_batch_tokens=max(_PASS, longest),
        seed=seed,
        use_async_batching=False,
        auto_switch_to_flash=False,  # it may look for kernels on the Hub
        drop_unsupported_processors=False,  # another distribution than asked for
    )


def _collected(manager: Any, count: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while len(found) < count:
        result = manager.get_result(timeout=1)
        if result is not None and result.error is not None:
            raise UserError(f"sampling.sampler: continuous batching failed ({result.error}); use generate")
        if result is not None and result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
        elif result is None and not manager.is_running():
            raise UserError("sampling.sampler: continuous batching ended early; use generate")
    return found
