"""Draw responses from a language model, from its own distribution and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ippo_lightning.policies.modes import evaluating
from ippo_lightning.policies.sequences import position_ids_of
from ippo_lightning.policies.settings import SamplingSettings


class Samples(NamedTuple):
    """Responses, `num_responses` rows for the first prompt, then for the second, and so on."""

    response_ids: Tensor
    """[episodes, tokens] int64, padded on the right."""
    response_mask: Tensor
    """[episodes, tokens] bool, True up to and including the first stop token."""
    truncated: Tensor
    """[episodes] bool, True where the length limit came before a stop token."""


@torch.no_grad()
def draw(
    language_model: PreTrainedModel,
    *,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    settings: SamplingSettings,
    stop_ids: list[int],
    pad_id: int,
    together: bool = False,
) -> Samples:
    """Sample responses to left-padded prompts with a key-value cache.

    Modes, the model's own generation settings and its `use_cache` are as before afterwards, also after an error.

    Args:
        language_model: the policy's network.
        prompt_ids: [prompts, prompt_tokens] int64.
        prompt_mask: [prompts, prompt_tokens] bool.
        settings: numbers of sampling.
        stop_ids: ids that end a response.
        pad_id: id that fills up a row after its end.
        together: go on until the last rank is done, since every forward is a collective.
    """
    generate: Any = language_model.generate
    rows = prompt_ids.repeat_interleave(settings.num_responses, dim=0)
    mask = prompt_mask.repeat_interleave(settings.num_responses, dim=0)
    with evaluating(language_model), _own_generation_settings_aside(language_model):
        sequences: Tensor = generate(
            input_ids=rows,
            attention_mask=mask.long(),
            position_ids=position_ids_of(mask),
            generation_config=_generation_config(settings, stop_ids=stop_ids, pad_id=pad_id),
            synced_gpus=together,
        )
    response_ids = sequences[:, prompt_ids.shape[1] :]
    response_mask, truncated = response_mask_of(response_ids, stop_ids=stop_ids)
    return Samples(response_ids.masked_fill(~response_mask, pad_id), response_mask, truncated)


def response_mask_of(response_ids: Tensor, *, stop_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Find where each response ends.

    Args:
        response_ids: [episodes, tokens] int64.
        stop_ids: ids that end a response.

    Returns:
        Mask [episodes, tokens] bool, True up to and including the first stop token; and truncated [episodes] bool, True
        where there is none.
    """
    stops = torch.isin(response_ids, torch.tensor(stop_ids, device=response_ids.device))
    stops_before = stops.long().cumsum(dim=1) - stops.long()
    return stops_before == 0, ~stops.any(dim=1)


def _generation_config(settings: SamplingSettings, *, stop_ids: list[int], pad_id: int) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if not settings.greedy:
        chosen = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        **chosen,
    )


@contextmanager
def _own_generation_settings_aside(language_model: PreTrainedModel) -> Iterator[None]:
    # generate() fills every setting left open from the model's saved ones, where a top_k or a penalty may lurk.
    own_settings = language_model.generation_config
    use_cache = getattr(language_model.config, "use_cache", None)
    language_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        language_model.generation_config = own_settings
        if use_cache is not None:
            language_model.config.use_cache = use_cache
