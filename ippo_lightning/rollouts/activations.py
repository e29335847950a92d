"""Hidden states of responses, by one forward without a backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses
from ippo_lightning.policies.sequences import join, keeps_logits
from ippo_lightning.records import passes
from ippo_lightning.records.pass_size import PassSize, run_in_halves


@torch.no_grad()
def response_activations(
    policy: CausalLMPolicy,
    rows: EncodedResponses,
    *,
    counted: Tensor,
    layer: int | None,
    micro_batch_size: int,
    size: PassSize | None = None,
) -> Tensor:
    """Return the mean hidden state of each response after a layer.

    Args:
        policy: read at its current parameters.
        rows: prompts and responses, at least one.
        counted: the response tokens that count, shape [rows, steps], bool.
        layer: number of the layer, counted from 1; None for the middle one.
        micro_batch_size: at most so many rows per forward.
        size: tokens of a forward, padding included; None for no limit.

    Returns:
        Shape [rows, width], in single precision or that of the model; 0 for a row without a token that counts.

    Raises:
        UserError: the model has no such layer.
    """
    network: Any = policy.language_model
    chosen = chosen_layer(policy, layer)
    spans, prompt_tokens = rows.response_mask.sum(dim=1), rows.prompt_mask.sum(dim=1)
    means: dict[int, Tensor] = {}

    def fill(places: Tensor) -> None:
        # Without columns that are padding in all of these rows.
        width, steps = max(int(prompt_tokens[places].max()), 1), max(int(spans[places].max()), 1)
        prompts = rows.prompt_ids[places, -width:], rows.prompt_mask[places, -width:]
        responses = rows.response_ids[places, :steps], rows.response_mask[places, :steps]
        sequences = join(*prompts, *responses, limit=policy.context_length)
        limit = {"logits_to_keep": 1} if keeps_logits(network) else {}
        output = network(**sequences._asdict(), use_cache=False, output_hidden_states=True, **limit)
        own = counted[places, :steps]
        # `where` and not a product: the model may compute NaN for padding.
        states = torch.where(own[..., None], output.hidden_states[chosen][:, -steps:], 0.0)
        # Summed in at least single precision.
        found = states.sum(dim=1, dtype=torch.promote_types(states.dtype, torch.float32)) / own.sum(
            dim=1, keepdim=True
        ).clamp(min=1)
        means.update(zip(places.tolist(), found, strict=True))

    max_tokens = None if size is None else size.tokens
    for places, *_ in passes(spans + prompt_tokens, module=policy, max_rows=micro_batch_size, max_tokens=max_tokens):
        run_in_halves(places, fill, field="update.micro_batch_size", can_retry=not is_sharded(policy))
    return torch.stack([means[place] for place in range(len(counted))])


def chosen_layer(policy: CausalLMPolicy, layer: int | None) -> int:
    """Return the number of a layer, counted from 1.

    Args:
        policy: has the layers.
        layer: None for the middle one.

    Raises:
        UserError: there is no such layer.
    """
    count = int(policy.language_model.config.get_text_config().num_hidden_layers)
    if layer is not None and layer > count:
        raise UserError(f"target.layer: {layer}, and the model has {count} layers; expected 1 to {count}, or null")
    return (count + 1) // 2 if layer is None else layer
