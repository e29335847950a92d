"""What the critic expects of prompts, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.records import passes
from ippo_lightning.records.pass_size import PassSize, run_in_halves


@torch.no_grad()
def prompt_values(
    policy: CausalLMPolicy, *, prompts: Sequence[str], micro_batch_size: int, size: PassSize | None = None
) -> Tensor:
    """Return the critic's value of the last token of each prompt: one forward over the prompts.

    Args:
        policy: has a critic.
        prompts: at least one.
        micro_batch_size: at most so many prompts per forward.
        size: tokens of a forward, padding included; None for no limit.

    Returns:
        Shape [prompts], float32, in units of the reward.
    """
    room = policy.context_length - 1
    ids, mask = (part.to(policy.device) for part in policy.text.encode_prompts(prompts, max_length=room))
    found = torch.zeros(len(ids), device=ids.device)

    def fill(rows: Tensor) -> None:
        # The value before the first response token is that of the last prompt token, whatever the response is.
        width = int(mask[rows].sum(dim=1).max())  # shorter prompts of other passes leave no padding behind
        own_ids, own_mask = ids[rows, -width:], mask[rows, -width:]
        response = own_ids[:, -1:]
        output = policy(own_ids, own_mask, response, torch.ones_like(response, dtype=torch.bool), with_values=True)
        found[rows] = output.values[:, 0].float()

    costs = mask.sum(dim=1) + 1
    max_tokens = None if size is None else size.tokens
    for rows, *_ in passes(costs, module=policy, max_rows=micro_batch_size, max_tokens=max_tokens):
        run_in_halves(rows, fill, field="update.micro_batch_size", can_retry=not is_sharded(policy))
    return found
