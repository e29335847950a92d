"""Passes over the rows of a kept iteration without gradients: their log-probabilities and their embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.sequences import join
from ippo_lightning.records import Episodes, TextEpisodes, cut_rows
from ippo_lightning.records.pass_size import PassSize

EMBEDDINGS = {
    "text": "the last hidden state of the language model, mean over the tokens of the response",
    "control": "the last hidden layer of the actor",
}
"""In words, by kind of rows."""


def row_log_probs(module: Any, rows: Episodes) -> Tensor:
    """Return log pi of each row at the current parameters, nats, shape [rows], float64 on the CPU.

    Args:
        module: of the run.
        rows: on the module's device.
    """

    def of_part(part: Episodes) -> Tensor:
        found: Tensor = module.score(part).log_probs
        return found.masked_fill(~part.mask, 0.0).double().sum(dim=1)

    return _over_passes(module, rows, of_part)


def embeddings_of(module: Any, rows: Episodes) -> Tensor:
    """Return what the policy computes of each row before its last layer, shape [rows, features], on the CPU.

    Args:
        module: of the run.
        rows: on the module's device.

    Raises:
        UserError: a policy for environments that is no `ActorCritic`.
    """
    if isinstance(rows, TextEpisodes):
        return _over_passes(module, rows, lambda part: _text_embeddings(module, part))
    policy = module.policy
    if not callable(getattr(policy, "features", None)) or not isinstance(
        getattr(policy, "actor", None), torch.nn.Sequential
    ):
        raise UserError(f"trace: {type(policy).__name__} has no actor of layers; expected an ActorCritic")
    return _over_passes(
        module,
        rows,
        lambda part: policy.actor[:-1](policy.features(part.observations[:, 0])).flatten(1),
    )


def _text_embeddings(module: Any, part: TextEpisodes) -> Tensor:
    sequences = join(part.prompt_ids, part.prompt_mask, part.response_ids, part.response_mask)
    network = module.policy.language_model.base_model
    known = inspect.signature(network.forward).parameters
    given = {name: value for name, value in sequences._asdict().items() if name in known}
    states = network(**given).last_hidden_state[:, -part.mask.shape[1] :].float()
    # masked_fill and not a product: the model may compute NaN for padding, and 0 * NaN is NaN
    own = states.masked_fill(~part.mask[..., None], 0.0)
    found: Tensor = own.sum(dim=1) / part.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return found


def _over_passes(module: Any, rows: Episodes, compute: Callable[[Any], Tensor]) -> Tensor:
    limit = PassSize("auto", field="update.max_tokens").tokens
    parts = cut_rows(rows.cost(), max_tokens=limit)
    with torch.no_grad(), evaluating(module):
        found = [compute(rows.select(part)).cpu() for part in parts]
    order = torch.cat([part.cpu() for part in parts])
    return torch.cat(found)[order.argsort()]
