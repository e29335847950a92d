"""Count the bytes that collectives carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = ("wait_tensor", "_wrap_tensor_autograd")


class CommunicationCount(TorchDispatchMode):
    """Counts each collective of the block with the size of its largest tensor: what all ranks hold together."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace in ("c10d", "_c10d_functional") and name not in _WAITING:
            tensors = [*_tensors(args), *_tensors(result)]
            self.bytes[_KINDS[name]] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


_KINDS = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather_parameters",
    "_reduce_scatter_base_": "reduce_scatter",
    "all_gather_into_tensor": "all_gather_direction",
    "broadcast_": "broadcast",
}
"""FSDP2 gathers parameters by the one, `full_tensor` gathers by another."""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
