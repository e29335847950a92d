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
    """Yield each part with True; if the module is sharded, then yield the last part with False until all ranks end.

    A forward through a sharded module waits for all ranks, so all ranks need the same number of passes. A rank with
    fewer parts repeats its last one, and the caller discards the result.

    Args:
        parts: the inputs of the passes; at least one if the module is sharded.
        module: the module of the passes.
    """
    most = len(parts)
    if is_sharded(module):
        # All ranks agree before the first pass: later, another rank may already wait inside a forward.
        most = all_reduce_max(most, device=next(module.parameters()).device)
    for number in range(most):
        yield parts[min(number, len(parts) - 1)], number < len(parts)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Keep all parameters of a sharded network in full on every rank inside the block, for many forwards.

    Args:
        network: sharded again afterwards, also after an error; a network that is not sharded does not change.
    """
    # Sampling makes one forward per token; without this, each would gather all parameters again.
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
