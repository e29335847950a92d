"""Passes through a sharded module, which all ranks must make together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.distributed.fsdp import FSDPModule

from ippo_lightning.distributed.collectives import all_reduce_max
from ippo_lightning.distributed.dtensor import is_sharded

Part = TypeVar("Part")


def in_step(parts: Sequence[Part], *, module: nn.Module) -> Iterator[tuple[Part, bool]]:
    """Yield each part with True; then, of a sharded module, the last one with False until every rank is done.

    A forward through a sharded module waits for all ranks. One that has fewer parts than another repeats its last, and
    leaves what comes of it out.

    Args:
        parts: at least one where the module is sharded.
        module: what the parts go through.
    """
    most = len(parts)
    if is_sharded(module):  # agreed on before the first pass: afterwards the others are in the middle of one
        most = all_reduce_max(most, device=next(module.parameters()).device)
    for number in range(most):
        yield parts[min(number, len(parts) - 1)], number < len(parts)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Keep all parameters of a sharded network on every rank inside the block, for many forwards in a row.

    Args:
        network: changed back also when the block fails; one that is not sharded is left alone.
    """
    units = [module for module in network.modules() if isinstance(module, FSDPModule)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
