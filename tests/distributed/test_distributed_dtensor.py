"""In one process, functions for sharded tensors are ordinary arithmetic (ranks: test_distributed_sharded_ranks.py)."""

from __future__ import annotations

import torch
from torch import nn

from ippo_lightning.distributed.dtensor import (
    full_tensor,
    have_nonzero,
    inner_product,
    is_sharded,
    local,
    local_bytes,
    mean_over_ranks,
    sharded_like,
)


def test_an_ordinary_tensor_is_both_full_and_local() -> None:
    tensor = torch.randn(3, 2)
    assert full_tensor(tensor) is tensor
    assert local(tensor) is tensor
    assert sharded_like(tensor, torch.empty(3, 2)) is tensor


def test_products_are_summed_over_all_tensors_in_double_precision() -> None:
    first = [torch.tensor([1.0, 2.0]), torch.tensor([[2.0**-30]])]
    second = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0]])]
    assert inner_product(first, second) == 11.0 + 2.0**-30
    assert inner_product([], []) == 0.0


def test_a_tensor_of_zeros_differs_from_a_tensor_that_is_almost_zero() -> None:
    assert have_nonzero([torch.zeros(3), torch.tensor([0.0, 1e-300], dtype=torch.float64)]) == [False, True]
    assert have_nonzero([]) == []


def test_bytes_depend_on_the_dtype() -> None:
    assert local_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)]) == 16
    assert local_bytes({"one": torch.zeros(4, dtype=torch.float64)}) == 32


def test_an_ordinary_module_is_not_sharded() -> None:
    assert not is_sharded(nn.Linear(2, 1))


def test_in_one_process_the_mean_over_ranks_is_the_value() -> None:
    assert mean_over_ranks([1.0, 2.0], device=torch.device("cpu")) == [1.0, 2.0]
