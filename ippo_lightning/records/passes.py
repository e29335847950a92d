"""How rows are divided into passes through a model: sorted by cost, cut by rows or by tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.lockstep import in_step


class Pass(NamedTuple):
    """The rows of one pass."""

    rows: Tensor
    """[chosen] int64, positions of the rows."""
    is_real: bool
    """False for a pass that this rank repeats only because other ranks have more: its results do not count."""
    is_last: bool
    """True for the last real pass, and for repeated ones after it."""


def passes(
    costs: Tensor,
    *,
    module: nn.Module | None = None,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    first_rows: int | None = None,
    sort: bool = True,
) -> Iterator[Pass]:
    """Yield the rows of each pass; where a module is sharded, all ranks make equally many passes.

    Args:
        costs: what each row takes of a pass, in tokens, shape [rows], int64.
        module: what the rows go through. If it is sharded, each forward is a collective: a rank that has fewer passes
            repeats its last one, and `is_real` is then False.
        max_rows: see `cut_rows`.
        max_tokens: see `cut_rows`.
        first_rows: see `cut_rows`.
        sort: see `cut_rows`.
    """
    parts = cut_rows(costs, max_rows=max_rows, max_tokens=max_tokens, first_rows=first_rows, sort=sort)
    together = ((part, True) for part in parts) if module is None else in_step(parts, module=module)
    for number, (part, is_real) in enumerate(together):
        yield Pass(part, is_real, is_last=number >= len(parts) - 1)


def cut_rows(
    costs: Tensor,
    *,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    first_rows: int | None = None,
    sort: bool = True,
) -> list[Tensor]:
    """Divide rows into parts of neighbours in cost, so that a part contains little padding.

    Args:
        costs: what each row takes of a pass, in tokens, shape [rows], int64.
        max_rows: at most so many rows per part; None for no limit.
        max_tokens: at most so many rows times the largest cost per part; a single larger row is a part of its own.
        first_rows: at most so many rows in the first part.
        sort: whether the cheapest rows come first; False keeps their order.

    Returns:
        Positions of each part's rows; each row is in one part.

    Examples:
        >>> [part.tolist() for part in cut_rows(torch.tensor([3, 9, 2, 4]), max_tokens=8)]
        [[2, 0], [3], [1]]
    """
    # A stable sort: rows of equal cost keep their order, so the same rows give the same parts again.
    order = costs.argsort(stable=True) if sort else torch.arange(len(costs), device=costs.device)
    # A minibatch of short rows is one part as a rule, and need not be gone through row by row.
    limits = [limit for limit in (max_rows, first_rows) if limit is not None]
    is_short = 0 < len(order) <= min(limits, default=len(order))
    if is_short and (max_tokens is None or len(order) * int(costs.max()) <= max_tokens):
        return [order]
    parts: list[list[int]] = []
    largest = 0
    for position, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        limit = first_rows if len(parts) == 1 and first_rows is not None else max_rows
        is_full = bool(parts) and limit is not None and len(parts[-1]) >= limit
        largest = max(largest, cost)
        # Padding costs as much as tokens: a part takes its number of rows times its longest row.
        is_too_large = bool(parts) and max_tokens is not None and (len(parts[-1]) + 1) * largest > max_tokens
        if not parts or is_full or is_too_large:
            parts.append([])
            largest = cost
        parts[-1].append(position)
    return [torch.tensor(part, device=costs.device) for part in parts]
