"""Without ranks, what is made for divided tensors is ordinary arithmetic; with them, see tests/distributed."""

from __future__ import annotations

import torch
from torch import nn

from ippo_lightning.distributed.dtensor import (
    full_tensor,
    gathered,
    have_nonzero,
    in_step,
    inner_product,
    is_sharded,
    local,
    local_bytes,
    mean_over_ranks,
    sharded_like,
)


def test_an_ordinary_tensor_is_whole_and_local() -> None:
    tensor = torch.randn(3, 2)
    assert full_tensor(tensor) is tensor
    assert local(tensor) is tensor
    assert sharded_like(tensor, torch.empty(3, 2)) is tensor


def test_products_are_summed_over_all_tensors_in_double_precision() -> None:
    first = [torch.tensor([1.0, 2.0]), torch.tensor([[2.0**-30]])]
    second = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0]])]
    assert inner_product(first, second) == 11.0 + 2.0**-30
    assert inner_product([], []) == 0.0


def test_a_tensor_that_is_zero_everywhere_is_told_from_one_that_is_almost() -> None:
    assert have_nonzero([torch.zeros(3), torch.tensor([0.0, 1e-300], dtype=torch.float64)]) == [False, True]
    assert have_nonzero([]) == []


def test_bytes_are_counted_by_dtype() -> None:
    assert local_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)]) == 16
    assert local_bytes({"one": torch.zeros(4, dtype=torch.float64)}) == 32


def test_alone_every_part_is_ones_own_and_comes_once() -> None:
    module = nn.Linear(2, 1)
    assert list(in_step(["a", "b"], module=module)) == [("a", True), ("b", True)]
    assert list(in_step([], module=module)) == []
    assert not is_sharded(module)


def test_gathering_what_is_not_divided_changes_nothing() -> None:
    module = nn.Linear(2, 1)
    before = module.weight
    with gathered(module):
        assert module.weight is before
    assert mean_over_ranks([1.0, 2.0], device=torch.device("cpu")) == [1.0, 2.0]
