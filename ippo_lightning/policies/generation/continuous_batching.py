"""Sample by transformers' continuous batching: a finished response makes room for the next one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.generation.generate import generation_config, own_generation_settings_aside
from ippo_lightning.policies.generation.request import Drawn, Request, Samples, sample_in_batches

_PAGE = 32
"""Tokens per page of keys and values."""
_PASS = 4096
"""Most tokens per forward, prompts included."""
_STOP = 30.0
"""Seconds to wait for the end of the thread that generates."""


class ContinuousSampler:
    """Sample with continuous batching over paged keys and values.

    Args:
        network: the policy's language model, not sharded.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network

    def __call__(self, request: Request) -> Samples:
        """Return one response per row; the same random stream gives the same responses.

        Args:
            request: prompts, one row per response.

        Raises:
            UserError: generation failed; the message contains the library's reason.
        """
        return sample_in_batches(request, self._draw, network=self.network)

    @torch.no_grad()
    def _draw(self, request: Request) -> Drawn:
        prompts = [ids[mask].tolist() for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)]
        device = request.prompt_ids.device
        # One number from the caller's stream seeds all draws of this batch.
        seed = int(torch.randint(2**31, ()))
        cuda = [device] if device.type == "cuda" else []
        model: Any = self.network
        with (
            torch.random.fork_rng(devices=cuda),  # the library seeds every global generator
            evaluating(self.network),
            own_generation_settings_aside(self.network),
        ):
            manager = model.init_continuous_batching(
                generation_config=generation_config(request),
                continuous_batching_config=_configuration(prompts, request.settings.max_new_tokens, seed=seed),
            )
            try:
                # All requests wait before the thread starts. Otherwise its speed would decide which of them share a
                # pass, and the draws would differ from run to run.
                names = manager.add_requests(inputs=prompts, max_new_tokens=request.settings.max_new_tokens)
                manager.start()
                found = _collected(manager, len(prompts))
            finally:
                manager.stop(block=True, timeout=_STOP)
                manager.destroy()
        rows = [torch.tensor(found[name], dtype=torch.long, device=device) for name in names]
        return Drawn(pad_sequence(rows, batch_first=True, padding_value=request.pad_id))


def _configuration(prompts: list[list[int]], max_new_tokens: int, *, seed: int) -> ContinuousBatchingConfig:
    longest = max(len(prompt) for prompt in prompts)
    return ContinuousBatchingConfig(
        page_size=_PAGE,
        # Enough pages for this request. The library's default takes most of the device's memory.
        num_blocks=math.ceil((longest + max_new_tokens) / _PAGE) * len(prompts) + 1,
        max_batch_tokens=max(_PASS, longest),
        seed=seed,
        use_async_batching=False,
        auto_switch_to_flash=False,  # it may look for kernels on the Hub
        drop_unsupported_processors=False,  # dropping one would change the distribution without an error
    )


def _collected(manager: Any, count: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while len(found) < count:
        # The timeout lets the loop notice a thread that died without a result.
        result = manager.get_result(timeout=1)
        if result is not None and result.error is not None:
            raise UserError(f"sampling.sampler: continuous batching failed ({result.error}); use generate")
        if result is not None and result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
        elif result is None and not manager.is_running():
            raise UserError("sampling.sampler: continuous batching ended early; use generate")
    return found
