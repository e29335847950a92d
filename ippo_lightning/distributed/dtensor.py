"""Sharded tensors: each rank stores one part, its shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, is_distributed, rank, world_size


def is_sharded(module: nn.Module) -> bool:
    """Return whether any parameter of a module is sharded; then each forward is a collective.

    Args:
        module: any module; for example one sharded by `torch.distributed.fsdp.fully_shard`.
    """
    # Each small step of a small network calls this, and a walk through the modules takes a tenth of such a step.
    if not is_distributed():  # shards need ranks to lie on
        return False
    # After a forward, FSDP2 may leave full parameters in the place of the shards; the module is sharded nevertheless.
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(parameter, DTensor) for parameter in module.parameters()
    )


def reshard(module: nn.Module) -> None:
    """Put the shards back in the place of full parameters.

    FSDP2 leaves the parameters of its outermost module in full after a forward, until a backward. What is written into
    a shard then has no effect on the next forward, and `parameters()` gives the full ones.

    Args:
        module: any module; one that is not sharded does not change.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor; a sharded one is gathered, which every rank must do."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor; an ordinary tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the sharding of another tensor of the same shape.

    Args:
        tensor: full and equal on all ranks, or already sharded like `like`.
        like: a parameter, full or sharded.
    """
    if not isinstance(like, DTensor):
        return full_tensor(tensor)
    if isinstance(tensor, DTensor):
        return tensor
    # src_data_rank=None: every rank takes its shard of its own copy, without communication.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def have_nonzero(tensors: Sequence[Tensor]) -> list[bool]:
    """Return for each tensor whether any entry is not zero, on any rank if sharded.

    Args:
        tensors: any shapes; all ranks must call this if one is sharded.
    """
    if not tensors:
        return []
    device = local(tensors[0]).device
    # One collective and one transfer to the CPU for all tensors, not one for each.
    counts = torch.stack([local(tensor).count_nonzero().to(device) for tensor in tensors])
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        counts = all_reduce_sum(counts)
    flags: list[bool] = (counts > 0).tolist()
    return flags


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return for each tensor whether it contains neither NaN nor infinity, on any rank if sharded.

    Args:
        tensors: any shapes, float; all ranks must call this if one is sharded.
    """
    if not tensors:
        return []
    device = local(tensors[0]).device
    # As above: one collective and one transfer for all tensors.
    broken = torch.stack([(~torch.isfinite(local(tensor).detach())).any().to(device) for tensor in tensors]).long()
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        broken = all_reduce_sum(broken)
    flags: list[bool] = (broken == 0).tolist()
    return flags


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the sum of all products of entries in float64, over all ranks if sharded.

    Args:
        first: any shapes; sharded, or full and equal on all ranks.
        second: the same shapes and the same sharding.
    """
    pairs = [(local(one).detach(), local(other).detach()) for one, other in zip(first, second, strict=True)]
    if not pairs:
        return 0.0
    device = pairs[0][0].device
    # float64 before the product: in half precision, products of small entries would be zero.
    products = torch.stack([(one.double() * other.double()).sum().to(device) for one, other in pairs])
    sharded = torch.tensor([isinstance(tensor, DTensor) for tensor in first], device=device)
    if not bool(sharded.any()):
        return float(products.sum())
    # Full tensors are equal on all ranks; a sum over ranks would count them several times.
    return float(all_reduce_sum(products[sharded].sum()) + products[~sharded].sum())


def mean_over_ranks(values: Sequence[float], *, device: torch.device) -> list[float]:
    """Return the mean of each value over all ranks; the values themselves in one process.

    Args:
        values: as many on every rank.
        device: a device of the process group's backend.
    """
    total = all_reduce_sum(torch.tensor(values, dtype=torch.float64, device=device))
    means: list[float] = (total / world_size()).tolist()
    return means


def full_on_rank_zero(state: Any) -> Any:
    """Return a nested state with full tensors on the CPU; of sharded tensors, other ranks than 0 keep nothing.

    Args:
        state: dictionaries, lists and tuples of tensors and plain values; every rank must call this.
    """
    if isinstance(state, Tensor):
        if not isinstance(state, DTensor):
            return state.cpu()
        tensor = full_tensor(state)
        # One tensor after the other: full copies of all of them on every rank may not fit into memory.
        return tensor.cpu() if rank() == 0 else tensor.new_empty(0, device="cpu")
    if isinstance(state, Mapping):
        return {key: full_on_rank_zero(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(full_on_rank_zero(value) for value in state)
    return state


def local_bytes(tensors: Mapping[object, Tensor] | Sequence[Tensor]) -> int:
    """Return the number of bytes of this rank's shards of some tensors.

    Args:
        tensors: a mapping or a sequence of tensors, sharded or not.
    """
    entries = tensors.values() if isinstance(tensors, Mapping) else tensors
    return sum(local(tensor).numel() * tensor.element_size() for tensor in entries)
