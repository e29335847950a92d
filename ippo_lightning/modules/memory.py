"""The memory of a rank, as numbers for the log."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ippo_lightning.distributed.collectives import all_reduce_max
from ippo_lightning.distributed.dtensor import local_bytes

_MIB = 2**20


def memory_of(module: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Return MiB of the rank that uses most.

    Args:
        module: with all its parameters, also frozen ones.
        optimizer: with its state.

    Returns:
        `memory/parameters_mib`; `memory/optimizer_mib`; `memory/peak_mib`, the most in use since the last call:
        on a GPU what torch allocated, on a CPU the largest resident size of the process so far.
    """
    while not isinstance(optimizer, Optimizer):  # Lightning's and Fabric's wrappers are instances, others may not be
        optimizer = optimizer.optimizer
    parameters = list(module.parameters())
    device = parameters[0].device
    state = [entry for entries in optimizer.state.values() for entry in entries.values() if isinstance(entry, Tensor)]
    sizes = {"parameters": local_bytes(parameters), "optimizer": local_bytes(state), "peak": _peak_bytes(device)}
    # The maximum, because the rank that uses most is the first to run out.
    return {f"memory/{name}_mib": all_reduce_max(size, device=device) / _MIB for name, size in sizes.items()}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        # Reset, so that each iteration reports its own peak and not that of the run.
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if sys.platform == "win32":
        return 0
    import resource

    # getrusage counts bytes on macOS and KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
