"""In one process, passes in lockstep are ordinary passes. test_distributed_sharded_ranks.py covers several ranks."""

from __future__ import annotations

from torch import nn

from ippo_lightning.distributed.lockstep import gathered, in_step


def test_in_one_process_each_part_comes_once_and_counts() -> None:
    module = nn.Linear(2, 1)
    assert list(in_step(["a", "b"], module=module)) == [("a", True), ("b", True)]
    assert list(in_step([], module=module)) == []


def test_a_module_that_is_not_sharded_keeps_its_parameters_while_gathered() -> None:
    module = nn.Linear(2, 1)
    before = module.weight
    with gathered(module):
        assert module.weight is before
    assert module.weight is before
