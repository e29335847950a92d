"""Sums and decisions over all ranks. Without a process group, each function returns its input."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor

# gloo has no error class for a lost peer, so its messages are compared.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    # a rank that is stopped or hangs
    "Timed out waiting",
    "collective operation timeout",
)


def world_size() -> int:
    """Return the number of ranks, 1 outside a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return this process's rank, 0 outside a process group."""
    return dist.get_rank() if is_distributed() else 0


def end_process_group() -> None:
    """Wait for the other ranks and close the connections to them; call it when no work is left.

    gloo's threads can abort a process that ends with open connections ("terminate called without an active exception").
    """
    if not is_distributed():
        return
    # a rank that closes its connections a moment earlier must not make an error of a run that is complete
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    dist.destroy_process_group()


def is_lost_rank_error(error: BaseException) -> bool:
    """Return whether an error of a collective means that another process of the run has ended, or does not answer.

    Args:
        error: a RuntimeError from gloo, or a `DistBackendError` from NCCL.
    """
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks, equal on every rank.

    Args:
        values: any shape, the same on every rank; it does not change.
    """
    return _reduced(values, dist.ReduceOp.SUM) if is_distributed() else values


def gather_rows(values: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all ranks in the order of the ranks, and the slice of this rank's own rows.

    Args:
        values: shape [rows, ...]; the number of rows may differ between ranks.

    Returns:
        Shape [rows of all ranks, ...], and a slice of its first axis.
    """
    if not is_distributed():
        return values, slice(0, len(values))
    counts = torch.zeros(world_size(), dtype=torch.long, device=values.device)
    counts[rank()] = len(values)
    sizes = all_reduce_sum(counts).tolist()
    # all_gather requires equal shapes on all ranks.
    padded = torch.zeros((max(sizes), *values.shape[1:]), dtype=values.dtype, device=_device_for(values))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    first = sum(sizes[: rank()])
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows.to(values.device), slice(first, first + len(values))


def all_reduce_max(value: int, *, device: torch.device) -> int:
    """Return the largest `value` of all ranks.

    Args:
        value: this rank's value.
        device: a device of the process group's backend.
    """
    return int(_reduced(torch.tensor(value, device=device), dist.ReduceOp.MAX)) if is_distributed() else value


def any_rank(decision: bool, *, device: torch.device) -> bool:
    """Return whether `decision` is True on any rank, so that all ranks act alike.

    Args:
        decision: this rank's decision.
        device: a device of the process group's backend.
    """
    return bool(all_reduce_max(int(decision), device=device))


def is_distributed() -> bool:
    """Return whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    # all_reduce writes into its argument, which belongs to the caller.
    reduced = values.clone().to(_device_for(values))
    dist.all_reduce(reduced, op=operation)
    return reduced.to(values.device)


def _device_for(values: Tensor) -> torch.device:
    """Return where a collective can take place: NCCL moves CUDA tensors only."""
    is_stranded = values.device.type == "cpu" and "cpu" not in str(dist.get_backend_config())
    return torch.device("cuda", torch.cuda.current_device()) if is_stranded else values.device
