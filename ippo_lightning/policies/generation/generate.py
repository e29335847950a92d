"""Sample with transformers' own loop, `generate`, from the policy's distribution and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.distributed.lockstep import gathered
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.generation.finite_logits import FiniteLogits
from ippo_lightning.policies.generation.random_rows import RandomRows, random_state, set_random_state
from ippo_lightning.policies.generation.recording import DrawnLogProbs, NoteDrawn
from ippo_lightning.policies.generation.request import Drawn, Request, Samples, joined, sample_in_batches
from ippo_lightning.policies.generation.stop_strings import StopStringCriteria
from ippo_lightning.policies.loading import DTYPES
from ippo_lightning.policies.sequences import position_ids_of
from ippo_lightning.records import cut_rows
from ippo_lightning.records.finite_weights import explain_broken_output
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from ippo_lightning.records.pass_size import PassSize


class GenerateSampler:
    """Sample with `generate` and a key-value cache.

    Args:
        network: the policy's language model.
        gather: gather a sharded model once for the full request. It then needs the memory of the full model.
        synced: keep all ranks in the loop until the last one has finished; a sharded model that is not gathered needs
            this, because each of its forwards is a collective.
    """

    def __init__(self, network: PreTrainedModel, *, gather: bool = False, synced: bool = False) -> None:
        self.network = network
        self.gather = gather
        self.synced = synced
        # Without a limit until memory runs out: the keys and values of a row take less than the activations of a pass
        # with gradients, and one large batch is the fastest.
        self.size = PassSize(2**62, field="sampling")

    def __call__(self, request: Request) -> Samples:
        """Return one response per row.

        Modes, the model's own generation settings and its `use_cache` are the same afterwards, also after an error. If
        memory runs out, the rows are drawn in parts, with the random numbers that they have in the whole batch.

        Args:
            request: prompts, one row per response.

        Raises:
            UserError: a single response does not fit in the device's memory, or the model is sharded and its ranks
                cannot draw again.
        """
        with gathered(self.network) if self.gather else nullcontext():
            return sample_in_batches(request, self._draw, network=self.network)

    def _draw(self, request: Request) -> Drawn:
        rows, columns = request.prompt_ids.shape
        width, device = columns + request.settings.max_new_tokens, request.prompt_ids.device
        start = last = random_state(device)
        waiting, found, most = self._parts(torch.arange(rows, device=device), width), list[Drawn](), -1
        while waiting:
            part, *rest = waiting
            stream = RandomRows(part, num_rows=rows, state=start, device=device) if len(part) < rows else None
            drawn = self._drawn(request, part, stream)
            # Outside of an except block, whose traceback keeps the tensors of the failed draw alive.
            if drawn is None:
                self.size.shrink(
                    len(part) * width, largest=width, can_retry=not is_sharded(self.network), what="response"
                )
                set_random_state(start, device)
                waiting = [*self._parts(part, width), *rest]
                continue
            waiting = rest
            found.append(drawn)
            # The whole batch goes on until its last response has ended.
            if stream is not None and stream.num_draws > most:
                most, last = stream.num_draws, stream.state()
        if len(found) > 1:
            set_random_state(last, device)
        return joined(found, pad_id=request.pad_id)

    def _parts(self, rows: Tensor, width: int) -> list[Tensor]:
        parts = cut_rows(torch.full_like(rows, width), max_tokens=self.size.tokens, sort=False)
        return [rows[part] for part in parts]

    def _drawn(self, request: Request, rows: Tensor, stream: RandomRows | None) -> Drawn | None:
        """Return the responses of some rows; None if memory ran out."""
        part = request._replace(prompt_ids=request.prompt_ids[rows], prompt_mask=request.prompt_mask[rows])
        try:
            with stream or nullcontext():
                return self._generated(part)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _generated(self, request: Request) -> Drawn:
        start = request.prompt_ids.shape[1]
        if request.settings.dtype is None:
            sequences: Tensor = generated(self.network, request, synced=self.synced)
            return Drawn(sequences[:, start:])
        # The weights stay as they are: training and scoring read them, and only the forwards of this loop are cast.
        notes = DrawnLogProbs(request.settings.temperature)
        with torch.autocast(request.prompt_ids.device.type, dtype=DTYPES[request.settings.dtype]):
            sequences = generated(self.network, request, synced=self.synced, notes=notes)
        return Drawn(sequences[:, start:], notes.log_probs())


@torch.no_grad()
def generated(
    network: PreTrainedModel,
    request: Request,
    *,
    synced: bool = False,
    with_scores: bool = False,
    notes: DrawnLogProbs | None = None,
) -> Any:
    """Return what transformers' `generate` returns for a request.

    Args:
        network: the policy's language model; modes and its own generation settings are the same afterwards.
        request: prompts, one row per response.
        synced: see `GenerateSampler`.
        with_scores: return an object with `sequences` and `scores`, the logits that each token is drawn from, instead
            of the sequences.
        notes: gets the log-prob of each token drawn.

    Raises:
        FloatingPointError: the model gives logits that are NaN or infinite.
    """
    generate: Any = network.generate
    finite = FiniteLogits()
    config = generation_config(request)
    config.return_dict_in_generate = config.output_scores = with_scores
    with evaluating(network), own_generation_settings_aside(network):
        result = generate(
            input_ids=request.prompt_ids,
            attention_mask=request.prompt_mask.long(),
            # The scoring forward uses the same positions. Left to the library, those of a padded prompt depend on the
            # architecture.
            position_ids=position_ids_of(request.prompt_mask),
            generation_config=config,
            # First, so that the log-probs are noted of what is drawn from.
            logits_processor=LogitsProcessorList([finite] if notes is None else [finite, notes]),
            stopping_criteria=_criteria(request, notes),
            synced_gpus=synced,
        )
    if finite.num_broken():
        rows = f"{finite.num_broken()} of {len(request.prompt_ids)} responses"
        raise FloatingPointError(
            f"sampling: the logits of {rows} are NaN or infinite; {explain_broken_output(network)}"
        )
    return result


def _criteria(request: Request, notes: DrawnLogProbs | None) -> StoppingCriteriaList | None:
    found: list[StoppingCriteria] = [] if notes is None else [NoteDrawn(notes)]
    if request.stop_strings is not None:
        # Not transformers' own stop strings: those search the prompt too, and prepare a table over the vocabulary.
        found.append(StopStringCriteria(request.stop_strings, request.prompt_ids.shape[1]))
    return StoppingCriteriaList(found) if found else None


def generation_config(request: Request) -> GenerationConfig:
    """Return transformers' settings that sample from the policy's own distribution.

    Args:
        request: prompts and settings.
    """
    settings = request.settings
    chosen: dict[str, Any] = {"do_sample": False}
    if not settings.greedy:
        # top_k=0 must be written out: transformers' default keeps only the 50 most likely tokens.
        chosen = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    # Continuous batching has a paged cache of its own instead.
    if settings.cache == "static" and settings.sampler == "generate":
        chosen["cache_implementation"] = "static"
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=request.stop_ids or None,
        pad_token_id=request.pad_id,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        **chosen,
    )


@contextmanager
def own_generation_settings_aside(language_model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's saved generation settings from `generate`.

    `generate` fills every field that the caller leaves open from these settings. A saved repetition penalty, for
    example, would change the distribution, and PPO's ratio would be wrong without any error.

    Args:
        language_model: it gets its settings, its `use_cache` and its `output_router_logits` back afterwards.
    """
    own_settings, config = language_model.generation_config, language_model.config
    changed = {name: getattr(config, name) for name in ("use_cache", "output_router_logits") if hasattr(config, name)}
    language_model.generation_config = GenerationConfig()
    # The balance loss of a mixture of experts, which sampling has no use for, fails with a cache: it pairs the mask of
    # the whole row with the one token that a step reads.
    if "output_router_logits" in changed:
        config.output_router_logits = False
    try:
        yield
    finally:
        language_model.generation_config = own_settings
        for name, value in changed.items():
            setattr(config, name, value)
