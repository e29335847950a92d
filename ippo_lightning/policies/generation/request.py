"""What a sampler gets and returns, and how one request is drawn in several batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ippo_lightning.errors import UserError
from ippo_lightning.policies.generation.stop_strings import StopStrings, stop_strings_of
from ippo_lightning.policies.settings import SamplingSettings
from ippo_lightning.policies.tokenization import TextFormat, pad_id_of, stop_token_ids
from ippo_lightning.records import passes


class Samples(NamedTuple):
    """Responses in the order of the prompts: all rows of the first prompt, then all of the second, and so on."""

    response_ids: Tensor
    """[rows, steps] int64, padded on the right."""
    response_mask: Tensor
    """[rows, steps] bool, True up to and including the first stop token, or the token in which a stop string ends."""
    truncated: Tensor
    """[rows] bool, True if the length limit came before a stop token and before the end of a stop string."""
    log_probs: Tensor | None = None
    """[rows, steps] nats, the sampler's own, of each token at the temperature; None if it reports none."""


class Drawn(NamedTuple):
    """What a sampler drew for a part of the rows; it may contain anything after a stop token."""

    ids: Tensor
    """[rows, steps] int64, padded on the right."""
    log_probs: Tensor | None = None
    """[rows, steps] nats, those that the tokens were drawn with; None if the sampler reports none."""
    mask: Tensor | None = None
    """[rows, steps] bool, False behind the last token of a row; None if only rows with a stop token are padded."""


class Request(NamedTuple):
    """Prompts to answer, one row per response."""

    prompt_ids: Tensor
    """[rows, prompt_tokens] int64, padded on the left."""
    prompt_mask: Tensor
    """[rows, prompt_tokens] bool."""
    settings: SamplingSettings
    stop_ids: list[int]
    """Ids that end a response."""
    pad_id: int
    """Id that fills a row after its end."""
    stop_strings: StopStrings | None = None
    """Texts that end a response, or None."""


def build_request(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    settings: SamplingSettings,
    counts: Tensor | None,
    text: TextFormat,
    context_length: int,
) -> Request:
    """Repeat each prompt once per response and check that prompt and response fit the context.

    Args:
        prompt_ids: [prompts, prompt_tokens] int64, padded on the left.
        prompt_mask: [prompts, prompt_tokens] bool.
        settings: how to sample.
        counts: [prompts] int64, responses per prompt; None for `settings.num_responses` each.
        text: of the policy: its tokenizer and every id that ends a response.
        context_length: most tokens, prompt and response together.

    Raises:
        UserError: prompt and response do not fit the context, a stop token is not one token, or the counts are wrong.
    """
    rows = _prompt_rows(len(prompt_ids), num_responses=settings.num_responses, counts=counts, device=prompt_ids.device)
    request = Request(
        prompt_ids=prompt_ids[rows],
        prompt_mask=prompt_mask[rows],
        settings=settings,
        stop_ids=stop_token_ids(text.tokenizer, settings.stop_tokens, text.eos_ids),
        pad_id=pad_id_of(text.tokenizer),
        stop_strings=stop_strings_of(text.tokenizer, settings.stop_strings),
    )
    # Checked before sampling: beyond its context a model may write nonsense without an error.
    longest = int(request.prompt_mask.sum(dim=1).max())
    if longest + settings.max_new_tokens > context_length:
        raise UserError(
            f"sampling.max_new_tokens: {settings.max_new_tokens} after a prompt of {longest} tokens exceeds the "
            f"model's context of {context_length}; shorten one of them"
        )
    return request


def _prompt_rows(num_prompts: int, *, num_responses: int, counts: Tensor | None, device: torch.device) -> Tensor:
    """Return [rows] int64, in ascending order: the index of the prompt that each response answers."""
    prompts = torch.arange(num_prompts, device=device)
    if counts is None:
        return prompts.repeat_interleave(num_responses)
    if counts.shape != (num_prompts,) or counts.dtype != torch.int64:
        raise UserError(
            f"sampling counts: shape {tuple(counts.shape)} of {counts.dtype}; expected ({num_prompts},) of torch.int64"
        )
    if bool((counts < 0).any()) or int(counts.sum()) == 0:
        raise UserError(f"sampling counts: {counts.tolist()}; expected integers >= 0, at least one of them > 0")
    return prompts.repeat_interleave(counts.to(device))


def sample_in_batches(request: Request, draw: Callable[[Request], Drawn], *, network: nn.Module) -> Samples:
    """Sample one response per row, at most `settings.batch_size` rows at a time.

    Args:
        request: all rows.
        draw: returns the responses to a part of the rows.
        network: what `draw` runs; ranks that have shards of it make the same number of draws.
    """
    batch_size = request.settings.batch_size
    drawn = draw(request) if batch_size is None else _drawn_in_batches(request, draw, batch_size, network)
    response_mask, truncated = response_mask_of(drawn.ids, stop_ids=request.stop_ids)
    if drawn.mask is not None:
        response_mask = response_mask & drawn.mask
    if request.stop_strings is not None:
        response_mask, truncated = request.stop_strings.end(drawn.ids, response_mask, truncated)
    # After a stop token the samplers differ; with one filler, equal responses have equal ids.
    response_ids = drawn.ids.masked_fill(~response_mask, request.pad_id)
    log_probs = None if drawn.log_probs is None else drawn.log_probs.masked_fill(~response_mask, 0.0)
    return Samples(response_ids, response_mask, truncated, log_probs)


def _drawn_in_batches(request: Request, draw: Callable[[Request], Drawn], batch_size: int, network: nn.Module) -> Drawn:
    lengths = request.prompt_mask.sum(dim=1)
    rows_drawn: list[Drawn | None] = [None] * len(lengths)
    # Prompts of similar length share a batch, so that it contains little padding. The sort is stable: the order of the
    # rows decides which random number each of them gets.
    for rows, is_new, _ in passes(lengths, module=network, max_rows=batch_size):
        columns = slice(request.prompt_ids.shape[1] - int(lengths[rows].max()), None)
        prompt_ids, prompt_mask = request.prompt_ids[rows, columns], request.prompt_mask[rows, columns]
        drawn = draw(request._replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask))
        # A pass that is repeated for other ranks draws again; the responses of the first draw stay.
        if is_new:
            for index, row in enumerate(rows.tolist()):
                rows_drawn[row] = _row(drawn, index)
    # All rows of a narrower batch have stopped, so the padding stands after a stop token and is masked.
    return joined([drawn for drawn in rows_drawn if drawn is not None], pad_id=request.pad_id)


def _row(drawn: Drawn, index: int) -> Drawn:
    log_probs, mask = (None if part is None else part[index : index + 1] for part in (drawn.log_probs, drawn.mask))
    return Drawn(drawn.ids[index : index + 1], log_probs, mask)


def joined(parts: Sequence[Drawn], *, pad_id: int) -> Drawn:
    """Return the rows of all parts, one part after the other, padded to the longest.

    Args:
        parts: at least one.
        pad_id: fills the ids.
    """

    def rows_of(field: int, filler: float) -> Tensor | None:
        values = [part[field] for part in parts]
        given = [row for value in values if value is not None for row in value]
        is_complete = all(value is not None for value in values)
        return pad_sequence(given, batch_first=True, padding_value=filler) if is_complete else None

    if len(parts) == 1:
        return parts[0]
    ids = rows_of(0, pad_id)
    assert ids is not None, "every sampler draws ids"
    return Drawn(ids, rows_of(1, 0.0), rows_of(2, False))


def response_mask_of(response_ids: Tensor, *, stop_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Find the end of each response.

    Args:
        response_ids: [rows, steps] int64.
        stop_ids: ids that end a response.

    Returns:
        Mask [rows, steps] bool, True up to and including the first stop token; and truncated [rows] bool, True for a
        response without a stop token.
    """
    stops = torch.isin(response_ids, torch.tensor(stop_ids, device=response_ids.device))
    # Counts the stop tokens before each position. Without the subtraction, the stop token itself would not count.
    stops_before = stops.long().cumsum(dim=1) - stops.long()
    return stops_before == 0, ~stops.any(dim=1)
