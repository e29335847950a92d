"""Draw responses from a language model, from its own distribution and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.sequences import position_ids_of
from ippo_lightning.policies.settings import SamplingSettings


class Samples(NamedTuple):
    """Responses, `num_responses` rows for the first prompt, then for the second, and so on."""

    response_ids: Tensor
    """[rows, steps] int64, padded on the right."""
    response_mask: Tensor
    """[rows, steps] bool, True up to and including the first stop token."""
    truncated: Tensor
    """[rows] bool, True where the length limit came before a stop token."""


class Request(NamedTuple):
    """What a sampler is asked for."""

    prompt_ids: Tensor
    """[rows, prompt_tokens] int64, padded on the left; a row for each response."""
    prompt_mask: Tensor
    """[rows, prompt_tokens] bool."""
    settings: SamplingSettings
    stop_ids: list[int]
    """Ids that end a response."""
    pad_id: int
    """Id that fills up a row after its end."""


def draw(request: Request, sampler: Callable[[Request], Tensor]) -> Samples:
    """Sample a response for each row, rows of like length together where they are drawn in several batches.

    Args:
        request: everything that is to be drawn.
        sampler: returns response ids [rows, tokens] for a part of it; what follows a stop token does not count.
    """
    batch_size = request.settings.batch_size
    response_ids = sampler(request) if batch_size is None else _drawn_in_batches(request, sampler, batch_size)
    response_mask, truncated = response_mask_of(response_ids, stop_ids=request.stop_ids)
    return Samples(response_ids.masked_fill(~response_mask, request.pad_id), response_mask, truncated)


def _drawn_in_batches(request: Request, sampler: Callable[[Request], Tensor], batch_size: int) -> Tensor:
    lengths = request.prompt_mask.sum(dim=1)
    responses: list[Tensor] = [lengths] * len(lengths)
    for rows in lengths.argsort(stable=True).split(batch_size):
        columns = slice(request.prompt_ids.shape[1] - int(lengths[rows].max()), None)
        prompt_ids, prompt_mask = request.prompt_ids[rows, columns], request.prompt_mask[rows, columns]
        drawn = sampler(request._replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask))
        for row, response in zip(rows.tolist(), drawn, strict=True):
            responses[row] = response
    # rows of a narrower batch have all stopped, so what fills them up lies behind a stop token
    return pad_sequence(responses, batch_first=True, padding_value=request.pad_id)


@torch.no_grad()
def generate_responses(language_model: PreTrainedModel, request: Request, *, together: bool = False) -> Tensor:
    """Sample with transformers' `generate` and a key-value cache.

    Modes, the model's own generation settings and its `use_cache` are as before afterwards, also after an error.

    Args:
        language_model: the policy's network.
        request: a batch.
        together: go on until the last rank is done, since every forward is a collective.

    Returns:
        Response ids [rows, tokens] int64.
    """
    generate: Any = language_model.generate
    with evaluating(language_model), own_generation_settings_aside(language_model):
        sequences: Tensor = generate(
            input_ids=request.prompt_ids,
            attention_mask=request.prompt_mask.long(),
            position_ids=position_ids_of(request.prompt_mask),
            generation_config=generation_config(request),
            synced_gpus=together,
        )
    return sequences[:, request.prompt_ids.shape[1] :]


def response_mask_of(response_ids: Tensor, *, stop_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Find where each response ends.

    Args:
        response_ids: [rows, steps] int64.
        stop_ids: ids that end a response.

    Returns:
        Mask [rows, steps] bool, True up to and including the first stop token; and truncated [rows] bool, True
        where there is none.
    """
    stops = torch.isin(response_ids, torch.tensor(stop_ids, device=response_ids.device))
    stops_before = stops.long().cumsum(dim=1) - stops.long()
    return stops_before == 0, ~stops.any(dim=1)


def generation_config(request: Request) -> GenerationConfig:
    """Return transformers' settings that draw from the policy's own distribution and nothing else.

    Args:
        request: what is to be drawn.
    """
    settings = request.settings
    chosen: dict[str, Any] = {"do_sample": False}
    if not settings.greedy:
        chosen = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    if settings.cache == "static" and settings.sampler == "generate":
        chosen["cache_implementation"] = "static"
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=request.stop_ids,
        pad_token_id=request.pad_id,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        **chosen,
    )


@contextmanager
def own_generation_settings_aside(language_model: PreTrainedModel) -> Iterator[None]:
    """Keep `generate` from filling what is left open from the model's saved settings, where a penalty may lurk.

    Args:
        language_model: has its settings and its `use_cache` back afterwards.
    """
    own_settings = language_model.generation_config
    use_cache = getattr(language_model.config, "use_cache", None)
    language_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        language_model.generation_config = own_settings
        if use_cache is not None:
            language_model.config.use_cache = use_cache
