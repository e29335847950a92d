"""After filtering, ranks have different amounts of work: this distributes the episodes again, by tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, gather_rows, rank, world_size
from ippo_lightning.records import Episodes, LayerRows

_TOLERATED = 1.1  # the fullest rank may have so many times the mean number of tokens


class Work(NamedTuple):
    """What this rank trains on."""

    episodes: Episodes
    """Its episodes; those from another rank have what `Episodes.for_update` leaves."""
    weights: Tensor
    """[rows], of the policy loss."""
    numbers: Tensor
    """[rows] int64, the number of each in messages: its position in the plan of the rank that sampled it."""
    placeholder: Episodes
    """One episode of this rank, for collectives in which it has no work of its own."""
    layers: LayerRows | None = None
    """Which of the rows each layer learns from in one step; None for all rows."""


def rebalance(work: Work) -> Work:
    """Return this rank's part of the episodes of all ranks, close to equal in tokens; on one rank, `work` itself.

    Episodes move only if the fullest rank has more than 1.1 times the mean. Ids, masks and numbers move, a few dozen
    bytes per token, once per iteration.

    Args:
        work: of this rank, perhaps without any row.
    """
    if world_size() == 1:
        return work
    tokens = work.episodes.cost().long()
    # All ranks take part in both calls before any of them may return.
    everyone = gather_rows(tokens)[0]
    owners = gather_rows(torch.full_like(tokens, rank()))[0]
    loads = torch.zeros(world_size(), dtype=torch.long, device=tokens.device).index_add(0, owners, everyone)
    if not len(everyone) or float(loads.max()) <= _TOLERATED * float(loads.float().mean()):
        return work
    # Each rank computes the same assignment from the same numbers, so it is not sent.
    chosen = torch.tensor(assignment(everyone.tolist(), num_ranks=world_size())[rank()], device=tokens.device).long()
    return _gathered(work, chosen)


def assignment(tokens: list[int], *, num_ranks: int) -> list[list[int]]:
    """Return which rows each rank gets: the longest first, each to the rank with the fewest tokens.

    Args:
        tokens: of each row.
        num_ranks: number of ranks.

    Example:
        >>> assignment([5, 1, 4, 2], num_ranks=2)
        [[0, 1], [2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    # the longest first: at most a third above the best possible (Graham 1969); ties by number, so that ranks agree
    for row in sorted(range(len(tokens)), key=lambda place: (-tokens[place], place)):
        lightest = min(range(num_ranks), key=lambda number: (loads[number], number))
        parts[lightest].append(row)
        loads[lightest] += tokens[row]
    return [sorted(part) for part in parts]


def _gathered(work: Work, chosen: Tensor) -> Work:
    """Return the rows at `chosen` among those of all ranks."""
    # Widened first: `gather_rows` pads the rows, and all other axes must be equal on all ranks.
    wide = _widened(work.episodes).for_update()
    columns: dict[str, object] = {}
    for name in wide.columns():
        column: Tensor = getattr(wide, name)
        is_mask = column.dtype == torch.bool  # gloo and NCCL carry bytes, not booleans
        rows = gather_rows(column.to(torch.uint8) if is_mask else column)[0][chosen]
        columns[name] = rows.bool() if is_mask else rows
    weights, numbers = (gather_rows(column)[0][chosen] for column in (work.weights, work.numbers))
    places = chosen.tolist()
    for name, entries in _gathered_objects(wide).items():
        columns[name] = tuple(entries[place] for place in places)
    # The placeholder does not move: a rank that receives no episode needs it.
    return Work(wide.evolve(**columns).trimmed(), weights, numbers, work.placeholder)


def _gathered_objects(episodes: Episodes) -> dict[str, list[Any]]:
    """Return the Python objects of the rows of all ranks, by field; messages name a row by its prompt."""
    names = episodes.object_columns()
    if not names:
        return {}
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, {name: getattr(episodes, name) for name in names})
    return {name: [entry for part in parts for entry in part[name]] for name in names}


def _widened(episodes: Episodes) -> Episodes:
    """Pad each axis to the widest of any rank."""
    widths = {axis: getattr(episodes, name).shape[1] for axis, name in episodes.mask_of_axis.items()}
    device = episodes.device
    return episodes.widened({axis: all_reduce_max(width, device=device) for axis, width in widths.items()})
