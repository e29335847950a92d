"""The random streams before each optimizer step, from which a step that failed can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ippo_lightning.engine.random_streams import StepStreams, continue_own_streams, own_streams

NUM_STEPS = 4


def draw_numpy() -> float:
    return float(np.random.rand())  # the global stream is what a user's loss may draw from


DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "numpy": draw_numpy,
    "torch": lambda: float(torch.rand(())),
}


@pytest.fixture(autouse=True)
def _streams_continue_after_the_test() -> object:
    states = own_streams()
    yield
    continue_own_streams(states)


@pytest.mark.parametrize("drawn", [["python"], ["numpy"], ["torch"], ["numpy", "torch"], []], ids="+".join)
def test_each_step_can_be_repeated_with_what_it_drew(drawn: list[str]) -> None:
    streams = StepStreams()
    steps = [(streams.before_step(), [DRAWS[name]() for name in drawn]) for _ in range(NUM_STEPS)]
    for states, numbers in steps:
        continue_own_streams(states)
        assert [DRAWS[name]() for name in drawn] == numbers


def test_the_streams_of_python_and_numpy_are_not_read_again_after_a_step_that_left_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []
    state = np.random.get_state
    monkeypatch.setattr(np.random, "get_state", lambda: read.append(1) or state())
    streams = StepStreams()
    for _ in range(NUM_STEPS):
        streams.before_step()
        torch.rand(())
    assert len(read) == 2


def test_a_draw_between_the_steps_of_two_iterations_is_seen() -> None:
    for _ in range(2):
        DRAWS["numpy"]()
        before = StepStreams().before_step()
        assert torch.equal(before["numpy"][1], own_streams()["numpy"][1])
        assert before["numpy"][2] == own_streams()["numpy"][2]
