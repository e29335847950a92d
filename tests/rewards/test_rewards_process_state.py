"""A reward or a grader that changes settings of the whole process changes nothing but its own result."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import HeldGrader, call_reward

TEXTS = {"prompts": ["a", "b"], "responses": ["d", "e"], "examples": [{}, {}]}

CHANGES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "default device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "folder": lambda: os.chdir(".."),
}


def settings() -> tuple[Any, ...]:
    """Read what the changes above change, by what torch computes where it computes something."""
    return (
        torch.tensor([0.5]).dtype,
        torch.ones(1, requires_grad=True).mul(2).requires_grad,
        torch.ones(1).device.type,
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        Path.cwd(),
    )


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_a_reward_changes_in_the_process_is_set_back(change: str, raises: bool) -> None:
    def reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
        CHANGES[change]()
        assert settings() != before  # the change is real
        if raises:
            raise ValueError("no")
        return [0.5, 1.5]

    before = settings()
    if raises:
        with pytest.raises(UserError, match="raised ValueError: no"):
            call_reward(reward, **TEXTS)
    else:
        assert call_reward(reward, **TEXTS).tolist() == [0.5, 1.5]
    assert settings() == before


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_a_grader_changes_in_the_process_is_set_back(change: str) -> None:
    def grader(prompt: str, response: str, example: Any) -> bool:
        CHANGES[change]()
        return True

    before = settings()
    assert HeldGrader(grader)("a", "b", {}).correct
    assert settings() == before


def test_a_reward_that_seeds_torch_leaves_the_stream_of_training_as_it_was() -> None:
    def reward(prompts: Any, responses: Any, examples: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.rand(2)

    torch.manual_seed(11)
    expected = torch.rand(6)
    torch.manual_seed(11)
    drawn, rewards = [], []
    for _ in range(3):
        drawn.append(torch.rand(2))
        rewards.append(call_reward(reward, **TEXTS))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(rewards[0], rewards[2])  # its own numbers are what the seed makes them


def test_random_numbers_that_a_reward_draws_stay_drawn() -> None:
    """A reward with noise gets other noise in each call."""

    def reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
        return [float(torch.rand(())), random.random()]

    first, second = call_reward(reward, **TEXTS), call_reward(reward, **TEXTS)
    assert not bool((first == second).any())
