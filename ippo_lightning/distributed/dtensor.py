"""Sharded tensors: each rank stores one part, a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, rank, world_size


def is_sharded(module: nn.Module) -> bool:
    """Tell whether ranks hold parts of the module's parameters, so that each forward is a collective.

    Args:
        module: any; sharded by `torch.distributed.fsdp.fully_shard`, for instance.
    """
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, gathered where ranks hold parts of it: then every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor; of an ordinary one, all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor divided over the ranks as another of its shape is.

    Args:
        tensor: whole and the same on all ranks, or divided as `like` is already.
        like: a parameter, whole or divided.
    """
    if not isinstance(like, DTensor):
        return full_tensor(tensor)
    if isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def have_nonzero(tensors: Sequence[Tensor]) -> list[bool]:
    """Tell of each tensor whether any entry is not zero; of divided ones, on any rank, in one collective."""
    if not tensors:
        return []
    device = local(tensors[0]).device
    counts = torch.stack([local(tensor).count_nonzero().to(device) for tensor in tensors])
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        counts = all_reduce_sum(counts)
    flags: list[bool] = (counts > 0).tolist()
    return flags


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the sum of all products of entries, in float64; of divided tensors, over all ranks in one collective.

    Args:
        first: any shapes; all divided, or none.
        second: the same shapes, and divided in the same way.
    """
    pairs = [(local(one).detach(), local(other).detach()) for one, other in zip(first, second, strict=True)]
    if not pairs:
        return 0.0
    device = pairs[0][0].device
    products = [(one.double() * other.double()).sum().to(device) for one, other in pairs]
    total = torch.stack(products).sum()
    return float(all_reduce_sum(total) if any(isinstance(tensor, DTensor) for tensor in first) else total)


def mean_over_ranks(values: Sequence[float], *, device: torch.device) -> list[float]:
    """Return the mean of each value over all ranks; alone, the values."""
    total = all_reduce_sum(torch.tensor(values, dtype=torch.float64, device=device))
    means: list[float] = (total / world_size()).tolist()
    return means


def full_on_rank_zero(state: Any) -> Any:
    """Return a nested state with whole tensors on the CPU; where ranks hold parts, only rank 0 keeps the whole.

    Args:
        state: dictionaries, lists and tuples of tensors and plain values; every rank takes part.
    """
    if isinstance(state, Tensor):
        if not isinstance(state, DTensor):
            return state.cpu()
        tensor = full_tensor(state)
        return tensor.cpu() if rank() == 0 else tensor.new_empty(0, device="cpu")
    if isinstance(state, Mapping):
        return {key: full_on_rank_zero(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(full_on_rank_zero(value) for value in state)
    return state


def local_bytes(tensors: Mapping[object, Tensor] | Sequence[Tensor]) -> int:
    """Return the bytes of what this rank holds of some tensors.

    Args:
        tensors: in a mapping or a sequence.
    """
    entries = tensors.values() if isinstance(tensors, Mapping) else tensors
    return sum(local(tensor).numel() * tensor.element_size() for tensor in entries)
