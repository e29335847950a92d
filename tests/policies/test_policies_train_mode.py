"""What tells randomness and lost gradients apart from an ordinary forward."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from ippo_lightning.policies.contexts import undisturbed
from ippo_lightning.policies.train_mode import draws_random_numbers, kinds_with_gradient, quieten

DRAWS: dict[str, tuple[Callable[[], object], bool]] = {
    "torch": (lambda: torch.rand(()), True),
    "python": (random.random, True),
    "numpy": (numpy.random.rand, True),
    "a generator of its own": (lambda: torch.rand((), generator=torch.Generator()), False),
    "dropout that is off": (lambda: nn.functional.dropout(torch.ones(3), p=0.0, training=True), False),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_call_that_moves_a_random_stream_is_found(name: str) -> None:
    call, expected = DRAWS[name]
    assert draws_random_numbers(call) == expected


def test_random_streams_buffers_and_attributes_are_restored_also_after_an_error() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.longest = 4
            self.register_buffer("table", torch.arange(4), persistent=False)

    module = Growing()
    table = module.table
    states = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state(legacy=False))

    def disturb() -> None:
        torch.rand(3), random.random(), numpy.random.rand()
        module.eval()
        module.longest = 8
        table.zero_()
        module.register_buffer("table", torch.arange(8), persistent=False)
        module.register_buffer("another", torch.arange(8))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), undisturbed(module):
        disturb()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(numpy.random.get_state(legacy=False))) == states[1:]
    assert module.training
    assert module.longest == 4
    assert module.table is table
    assert table.tolist() == [0, 1, 2, 3]
    assert set(dict(module.named_buffers())) == {"table"}


def test_gradients_count_by_kind_and_leave_no_trace() -> None:
    experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(3))
    experts.requires_grad_(True)[2].bias.requires_grad_(False)
    assert kinds_with_gradient(experts, lambda: experts[1](torch.ones(2)).sum()) == {"#.weight", "#.bias"}
    assert kinds_with_gradient(experts, lambda: torch.zeros(())) == set()
    assert all(parameter.grad is None for parameter in experts.parameters())


def test_a_part_that_was_in_evaluation_mode_stays_there() -> None:
    checkpointing, plain = nn.Linear(1, 1), nn.Linear(1, 1)
    checkpointing.gradient_checkpointing = True  # type: ignore[assignment]
    network = nn.Sequential(checkpointing, plain)
    quieten(network, None)
    assert [module.training for module in (network, checkpointing, plain)] == [False, True, False]
    network.eval()
    quieten(network)
    assert not checkpointing.training
