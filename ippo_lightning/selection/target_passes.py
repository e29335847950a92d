"""The passes over the batches of a target: cut by tokens, measured, halved if memory runs out."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.records import Episodes, cut_rows
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.targets import TargetLoss


def weight_of(target: TargetLoss, batch: Any) -> float:
    """Return what a batch counts in the average.

    Args:
        target: the loss and its batches.
        batch: one of them, or a part of one.
    """
    return float(target.weight(batch) if target.weight else _size(batch) or 1)


def cut_to_fit(pl_module: Any, target: TargetLoss, batch: Any, size: PassSize) -> list[Any]:
    """Return the batch itself if it has few enough tokens or its tokens are unknown, else parts of neighbours in cost.

    Args:
        pl_module: whose gradient is taken.
        target: the loss and its batches.
        batch: one of them, or a part of one.
        size: tokens of a pass.
    """
    costs = _costs(pl_module, target, batch)
    if costs is None or len(costs) * int(costs.max()) <= size.tokens:
        return [batch]
    return [_selected(batch, rows.tolist()) for rows in cut_rows(costs, max_tokens=size.tokens)]


def measured(pl_module: Any, target: TargetLoss, batches: Sequence[Any], size: PassSize) -> Iterator[Any]:
    """Yield the batches; what the caller does with one before it takes the next is the pass that is measured.

    Args:
        pl_module: whose gradient is taken.
        target: the loss and its batches.
        batches: of the passes.
        size: it is chosen by the first pass on a GPU, for later gradients.
    """
    device = next(pl_module.parameters()).device
    if device.type != "cuda":  # tokens of demonstrations are counted by tokenizing them
        yield from batches
        return
    for batch in batches:
        with size.measuring(device, tokens=_tokens(_costs(pl_module, target, batch))):
            yield batch


def halved(pl_module: Any, target: TargetLoss, size: PassSize, batch: Any) -> list[tuple[Any, float]]:
    """Return two halves of a batch that does not fit in memory, and the fraction of each in its loss.

    Args:
        pl_module: whose gradient is taken.
        target: the loss and its batches.
        size: it becomes smaller, so that later gradients begin with passes that fit.
        batch: for which memory ran out.

    Raises:
        UserError: it has one row, or a layout that cannot be cut, or ranks make their passes together.
    """
    rows, together = _size(batch), is_sharded(pl_module)
    halves = [batch] if together else cut(batch, 2)
    if len(halves) < 2:
        what = f"a batch of type {type(batch).__name__}" if rows is None else f"a batch of {rows} row"
        what += "s" if rows is not None and rows > 1 else ""
        less = "a smaller target.max_tokens, " if together and rows != 1 else ""
        raise UserError(
            f"InfluenceFilter.target: {what} does not fit in the device's memory; use {less}shorter rows or smaller "
            "batches, gradient_checkpointing: true, or a device with more memory"
        )
    tokens = _tokens(_costs(pl_module, target, batch))
    if tokens:
        size.lower(tokens)
    warnings.warn("InfluenceFilter.target: a batch does not fit in the device's memory, halving it", stacklevel=2)
    weights = [weight_of(target, half) for half in halves]
    return [(half, weight / (sum(weights) or 1.0)) for half, weight in zip(halves, weights, strict=True)]


def cut(batch: Any, pieces: int) -> list[Any]:
    """Cut episodes or a mapping of columns into pieces of neighbouring rows; anything else stays in one piece.

    Args:
        batch: of a target.
        pieces: at most so many.
    """
    size = _size(batch)
    # a batch of unknown layout is not cut: half of a tuple could be its labels
    if size is None or pieces < 2:
        return [batch]
    pieces = max(min(pieces, size), 1)
    bounds = [round(number * size / pieces) for number in range(pieces + 1)]
    return [_selected(batch, range(start, stop)) for start, stop in itertools.pairwise(bounds) if stop > start]


def _selected(batch: Any, rows: Sequence[int]) -> Any:
    if isinstance(batch, Episodes):
        return batch.select(rows)
    return {name: _of_column(column, rows) for name, column in batch.items()}


def _of_column(column: Any, rows: Sequence[int]) -> Any:
    if isinstance(column, Tensor):
        return column[torch.as_tensor(list(rows), device=column.device)]
    return type(column)([column[row] for row in rows])


def _size(batch: Any) -> int | None:
    """Return the number of rows of episodes or a mapping of columns, None for anything else."""
    if isinstance(batch, Episodes):
        return len(batch)
    if not isinstance(batch, Mapping) or not batch:
        return None
    columns = list(batch.values())
    if not all(isinstance(column, (list, tuple, Tensor)) for column in columns):
        return None
    sizes = {len(column) for column in columns}
    return sizes.pop() if len(sizes) == 1 else None


def _costs(pl_module: Any, target: TargetLoss, batch: Any) -> Tensor | None:
    """Return the tokens of each row, None if they are unknown."""
    # of a batch of unknown layout, no rows could be selected
    return None if target.costs is None or not _size(batch) else target.costs(pl_module, batch)


def _tokens(costs: Tensor | None) -> int:
    return 0 if costs is None else len(costs) * int(costs.max())
