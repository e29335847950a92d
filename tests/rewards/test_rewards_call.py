"""A user's reward function may return many things and may fail in many ways; each failure is one line."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import call_reward

TEXTS = {"prompts": ["a", "b", "c"], "responses": ["d", "e", "f"], "examples": [{}, {}, {}]}


def returning(value: Any):
    def some_reward(prompts, responses, examples):
        return value

    return some_reward


@pytest.mark.parametrize(
    "value",
    [
        [0.0, 1.0, 2.5],
        (0, True, 2.5),
        np.array([0.0, 1.0, 2.5]),
        np.array([[0.0], [1.0], [2.5]], dtype=np.float16),
        torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64),
        torch.tensor([[0.0], [1.0], [2.5]], requires_grad=True),
        [torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.5)],
        [[0.0], [1.0], [2.5]],
    ],
)
def test_one_number_an_episode_in_any_container_is_taken(value: Any) -> None:
    rewards = call_reward(returning(value), **TEXTS)
    assert rewards.dtype == torch.float32
    assert not rewards.requires_grad
    assert rewards.tolist() == [0.0, 1.0, 2.5]


def test_the_reward_gets_prompts_responses_and_examples_in_this_order() -> None:
    def echo(prompts, responses, examples):
        assert (prompts, responses, examples) == (TEXTS["prompts"], TEXTS["responses"], TEXTS["examples"])
        return [1.0] * 3

    assert call_reward(echo, **TEXTS).tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1.0, 2.0], r"returned shape \(2,\); expected 3 numbers"),
        ([1.0] * 4, r"returned shape \(4,\); expected 3 numbers"),
        ([], r"returned shape \(0,\); expected 3 numbers"),
        (1.0, r"returned shape \(\); expected 3 numbers"),
        (np.ones((3, 2)), r"returned shape \(3, 2\); expected 3 numbers"),
        (np.ones((1, 3)), r"returned shape \(1, 3\); expected 3 numbers"),
        (None, r"returned NoneType; expected 3 numbers"),
        ("123", r"returned str; expected 3 numbers"),
        (["1", "2", "3"], r"returned list; expected 3 numbers"),
        ([1.0, None, 1.0], r"returned list; expected 3 numbers"),
        ([1.0, [1.0], 1.0], r"returned list; expected 3 numbers"),
        ({"a": 1.0}, r"returned dict; expected 3 numbers"),
        ([1.0, 10**400, 1.0], r"returned list; expected 3 numbers"),
        # An id of its own: a generator prints its address, and parallel workers must collect the same names.
        pytest.param((number for number in range(3)), r"returned generator; expected 3 numbers", id="generator"),
        ([1.0, float("nan"), 1.0], r"returned nan for episode 1"),
        ([1.0, 1.0, -float("inf")], r"returned -inf for episode 2"),
        ([1.0, 1e39, 1.0], r"returned inf for episode 1"),
    ],
    ids=str,
)
def test_anything_else_is_one_line_for_the_user(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call_reward(returning(value), **TEXTS)
    assert str(caught.value).startswith("model.reward: ")
    assert "some_reward" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_that_raises_is_named_with_the_beginning_of_what_it_said() -> None:
    def broken(prompts, responses, examples):
        raise KeyError("first line\nsecond line " + "x" * 1000)

    with pytest.raises(UserError, match=r"broken raised KeyError: 'first line\\nsecond line xx") as caught:
        call_reward(broken, **TEXTS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350
    assert isinstance(caught.value.__cause__, KeyError)


def test_ctrl_c_in_a_reward_is_not_a_mistake_of_the_reward() -> None:
    def slow(prompts, responses, examples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward(slow, **TEXTS)


def test_an_object_and_a_partial_have_a_name_too() -> None:
    class LengthReward:
        def __call__(self, prompts, responses, examples):
            return None

    with pytest.raises(UserError, match=r"LengthReward returned NoneType"):
        call_reward(LengthReward(), **TEXTS)
    with pytest.raises(UserError, match=r"partial returned NoneType"):
        call_reward(functools.partial(returning(None)), **TEXTS)
