"""After filtering, ranks hold different amounts of work: share the episodes out anew, by tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from ippo_lightning.distributed.collectives import all_reduce_max, gather_rows, rank, world_size
from ippo_lightning.records import EPISODE_TENSORS, Episodes

_TOLERATED = 1.1  # times the mean number of tokens that the fullest rank may hold


class Work(NamedTuple):
    """What this rank trains on."""

    episodes: Episodes
    """Its episodes; those that came from another rank have their prompt, but neither response text nor example."""
    weights: Tensor
    """[rows], of the policy loss."""
    numbers: Tensor
    """[rows] int64, what each is called in messages: its place in the plan of the rank that sampled it."""
    placeholder: Episodes
    """One episode of this rank, for a collective in which it has nothing of its own."""


def rebalance(work: Work) -> Work:
    """Return this rank's fraction of the episodes of all ranks, close to equal in tokens; alone, what it was.

    Episodes move only where the fullest rank has more than 1.1 times the mean. What moves is ids, masks and numbers, a
    few dozen bytes a token, once an iteration.

    Args:
        work: what this rank holds, perhaps nothing.
    """
    if world_size() == 1:
        return work
    tokens = (work.episodes.lengths + work.episodes.prompt_mask.sum(dim=1)).long()
    everyone = gather_rows(tokens)[0]
    owners = gather_rows(torch.full_like(tokens, rank()))[0]
    loads = torch.zeros(world_size(), dtype=torch.long, device=tokens.device).index_add(0, owners, everyone)
    if not len(everyone) or float(loads.max()) <= _TOLERATED * float(loads.float().mean()):
        return work
    chosen = torch.tensor(assignment(everyone.tolist(), num_ranks=world_size())[rank()], device=tokens.device).long()
    return _gathered(work, chosen)


def assignment(tokens: list[int], *, num_ranks: int) -> list[list[int]]:
    """Return which episodes each rank gets: longest first, each to the rank with the fewest tokens.

    Args:
        tokens: of each episode.
        num_ranks: how many share.

    Example:
        >>> assignment([5, 1, 4, 2], num_ranks=2)
        [[0, 1], [2, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for episode in sorted(range(len(tokens)), key=lambda place: (-tokens[place], place)):
        lightest = min(range(num_ranks), key=lambda number: (loads[number], number))
        shares[lightest].append(episode)
        loads[lightest] += tokens[episode]
    return [sorted(share) for share in shares]


def _gathered(work: Work, chosen: Tensor) -> Work:
    """Return the episodes at `chosen` among those of all ranks."""
    wide = _widened(work.episodes)
    columns: dict[str, Tensor] = {}
    for name in EPISODE_TENSORS:
        column: Tensor = getattr(wide, name)
        is_mask = column.dtype == torch.bool  # gloo and NCCL carry bytes, not booleans
        rows = gather_rows(column.to(torch.uint8) if is_mask else column)[0][chosen]
        columns[name] = rows.bool() if is_mask else rows
    weights, numbers = (gather_rows(column)[0][chosen] for column in (work.weights, work.numbers))
    prompts: list[Any] = [None] * world_size()
    dist.all_gather_object(prompts, work.episodes.prompts)
    everyone = [prompt for part in prompts for prompt in part]
    places = chosen.tolist()
    moved = Episodes(
        **columns,
        prompts=tuple(everyone[place] for place in places),
        responses=("",) * len(places),
        examples=({},) * len(places),
    )
    return Work(moved.trimmed(), weights, numbers, work.placeholder)


def _widened(episodes: Episodes) -> Episodes:
    """Pad prompts on the left and responses on the right to the widest of any rank."""
    device = episodes.device
    prompt = all_reduce_max(episodes.prompt_ids.shape[1], device=device) - episodes.prompt_ids.shape[1]
    response = all_reduce_max(episodes.response_ids.shape[1], device=device) - episodes.response_ids.shape[1]
    changes: dict[str, Tensor] = {}
    for name in EPISODE_TENSORS:
        column: Tensor = getattr(episodes, name)
        if column.ndim == 2:
            changes[name] = pad(column, (prompt, 0) if name.startswith("prompt") else (0, response))
    return episodes.evolve(**changes)
