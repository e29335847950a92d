"""Losses of a batch that does not fit in memory at once, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


def in_fitting_parts(
    losses: Callable[[Model, Batch], Tensor], split: Callable[[Batch], Sequence[Batch]]
) -> Callable[[Model, Batch], Tensor]:
    """Return the same losses, of a batch that may be larger than memory allows; for forwards without a graph.

    A part that fits is not computed again, and the next call with the same batch begins with the parts that fitted.

    Args:
        losses: called with the model and a batch; returns one loss per row, shape [rows].
        split: called with a batch for which memory ran out; returns its parts, in the order of its rows. It raises if
            the batch is a single row.
    """
    # By identity, because a batch may be of any type: the caller keeps the batches alive between the calls.
    known: dict[int, list[Batch]] = {}

    def of_parts(model: Model, batch: Batch) -> Tensor:
        waiting, fitted, found = known.get(id(batch), [batch]), list[Batch](), list[Tensor]()
        while waiting:
            part, *rest = waiting
            value = _value(losses, model, part)
            # Outside of the except block, whose traceback keeps the tensors of the failed pass alive.
            if value is None:
                waiting = [*split(part), *rest]
                continue
            waiting = rest
            fitted.append(part)
            found.append(value)
        known[id(batch)] = fitted
        return found[0] if len(found) == 1 else torch.cat(found)

    return of_parts


def _value(losses: Callable[[Model, Batch], Tensor], model: Model, batch: Batch) -> Tensor | None:
    """Return the losses, None if memory ran out."""
    try:
        return losses(model, batch)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    return None
