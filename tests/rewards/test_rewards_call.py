"""A user's reward function may return many things and may fail in many ways; each failure is one line."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import call_in_parts, call_reward

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
        torch.tensor([0.0, 1.0, 2.5]).to_sparse(),
        torch.tensor([[0.0], [1.0], [2.5]]).to_sparse(),
    ],
    ids=[
        "list",
        "tuple",
        "array",
        "column",
        "tensor",
        "tensor column",
        "list of tensors",
        "list of lists",
        "sparse tensor",
        "sparse column",
    ],
)
def test_one_number_per_episode_in_any_container_is_taken(value: Any) -> None:
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
        (torch.tensor([1.0j, 2.0j, 0.0j]), "returned Tensor; expected 3 numbers"),
        (torch.ones(3, device="meta"), "returned Tensor; expected 3 numbers"),
        (torch.nested.as_nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "returned NestedTensor"),
        ([1.0, 2.0], r"returned shape \(2,\); expected 3 numbers"),
        ([1.0] * 4, r"returned shape \(4,\); expected 3 numbers"),
        ([], r"returned shape \(0,\); expected 3 numbers"),
        (1.0, r"returned shape \(\); expected 3 numbers"),
        (np.ones((3, 2)), r"returned shape \(3, 2\); expected 3 numbers"),
        (np.ones((1, 3)), r"returned shape \(1, 3\); expected 3 numbers"),
        (None, r"returned NoneType \(as a function without return does\); expected 3 numbers, one per episode"),
        ("123", r"returned str; expected 3 numbers"),
        (["1", "2", "3"], r"returned list with '1' for episode 0; expected 3 numbers"),
        ([1.0, None, 1.0], r"returned list with None for episode 1; expected 3 numbers"),
        ([1.0, [1.0], 1.0], r"returned list with list for episode 1; expected 3 numbers"),
        ({"a": 1.0}, r"returned shape \(\) as part a; expected 3 numbers"),
        ([1.0, 10**400, 1.0], r"returned list; expected 3 numbers"),
        # An id of its own: a generator prints its address, and parallel workers must collect the same names.
        pytest.param((number for number in range(3)), r"returned generator; expected 3 numbers", id="generator"),
        ([1.0, float("nan"), 1.0], r"returned nan for episode 1"),
        ([1.0, 1.0, -float("inf")], r"returned -inf for episode 2"),
        ([1.0, 1e39, 1.0], r"returned inf for episode 1"),
    ],
    ids=[
        "complex",
        "without values",
        "nested",
        "too few",
        "too many",
        "none at all",
        "one number",
        "two columns",
        "one row",
        "None",
        "text",
        "list of text",
        "list with None",
        "ragged list",
        "dict",
        "integer too large",
        "generator",
        "nan",
        "infinity",
        "beyond float32",
    ],
)
def test_anything_else_is_one_line_for_the_user(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call_reward(returning(value), **TEXTS)
    assert str(caught.value).startswith("model.reward: ")
    assert f"{__name__}.returning.<locals>.some_reward returned" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), GeneratorExit(), asyncio.CancelledError()], ids=repr)
def test_what_would_end_the_process_with_success_is_an_error_of_the_reward(error: BaseException) -> None:
    def leaves(prompts, responses, examples):
        raise error

    with pytest.raises(UserError, match=rf"leaves raised {type(error).__name__}"):
        call_reward(leaves, **TEXTS)


def test_ctrl_c_in_a_reward_stays_a_ctrl_c() -> None:
    def stopped(prompts, responses, examples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward(stopped, **TEXTS)


def test_a_reward_that_raises_is_named_with_the_beginning_of_its_message() -> None:
    def broken(prompts, responses, examples):
        raise KeyError("first line\nsecond line " + "x" * 1000)

    with pytest.raises(UserError, match=r"broken raised KeyError: 'first line\\nsecond line xx") as caught:
        call_reward(broken, **TEXTS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    line = broken.__code__.co_firstlineno + 1
    assert f"test_rewards_call.py, line {line}; the keys of example are" in str(caught.value)
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
    with pytest.raises(UserError, match=r"partial of .*some_reward returned NoneType"):
        call_reward(functools.partial(returning(None)), **TEXTS)


@pytest.mark.parametrize("kind", ["function", "lambda", "object", "method", "module", "partial"])
def test_no_message_contains_an_address(kind: str) -> None:
    class Model(nn.Module):
        def forward(self, prompts, responses, examples):
            return None

    made = {
        "function": returning(None),
        "lambda": lambda prompts, responses, examples: None,
        "object": Model(),
        "method": Model().forward,
        "module": Model(),
        "partial": functools.partial(returning(None)),
    }
    with pytest.raises(UserError) as caught:
        call_reward(made[kind], **TEXTS)
    assert not re.search(r"0x[0-9a-f]+| at ", str(caught.value))


# --- models as rewards -----------------------------------------------------------------------------------


class RewardModel(nn.Module):
    """Notes how it is called; dropout makes it random in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(4)
        self.net = nn.Linear(4, 1)
        self.frozen.eval()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, prompts, responses, examples):
        self.seen.append((any(part.training for part in self.modules()), torch.is_grad_enabled()))
        return self.net(self.frozen(self.dropout(torch.ones(len(responses), 4))))

    def score(self, prompts, responses, examples):
        return self(prompts, responses, examples)


def scored_by(model, prompts, responses, examples, *, judge=None):
    return (judge or model)(prompts, responses, examples)


WAYS: dict[str, Callable[[RewardModel], Any]] = {
    "module": lambda model: model,
    "method": lambda model: model.score,
    "partial": lambda model: functools.partial(model),
    "partial of a method": lambda model: functools.partial(functools.partial(model.score)),
    "partial of a class's method": lambda model: functools.partial(RewardModel.score, model),
    "argument of a partial": lambda model: functools.partial(scored_by, model),
    "keyword of a partial": lambda model: functools.partial(scored_by, None, judge=model),
    "method in a partial in a partial": lambda model: functools.partial(scored_by, functools.partial(model.score)),
    "twice in a partial": lambda model: functools.partial(scored_by, model, judge=model),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_called_in_eval_mode_without_gradients_and_left_as_it_was(way: str) -> None:
    model = RewardModel()
    before = [part.training for part in model.modules()]
    reward = WAYS[way](model)
    first, second = call_reward(reward, **TEXTS), call_reward(reward, **TEXTS)
    assert model.seen == [(False, False)] * 2
    assert torch.equal(first, second)
    assert [part.training for part in model.modules()] == before == [True, True, False, True]
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_model_that_raises_is_left_as_it_was_too() -> None:
    class Broken(RewardModel):
        def forward(self, prompts, responses, examples):
            raise KeyError("nothing")

    model = Broken()
    with pytest.raises(UserError, match=r"Broken raised KeyError"):
        call_reward(model, **TEXTS)
    assert model.training
    assert torch.is_grad_enabled()


def test_a_function_may_use_gradients() -> None:
    def trains(prompts, responses, examples):
        weight = torch.ones(3, requires_grad=True)
        weight.sum().backward()
        return weight.grad

    assert call_reward(trains, **TEXTS).tolist() == [1.0] * 3


# --- parts, and what a reward asks for ---------------------------------------------------------------------------

PLACES = tuple(TEXTS.values())


def test_named_parts_add_up_to_the_reward() -> None:
    called = call_in_parts(returning({"right": [1, 0, 1], "short": np.array([-0.5, 0.0, -1.0])}), PLACES)
    assert called.total.tolist() == [0.5, 0.0, 0.0]
    assert {name: part.tolist() for name, part in called.parts.items()} == {
        "right": [1.0, 0.0, 1.0],
        "short": [-0.5, 0.0, -1.0],
    }
    assert call_in_parts(returning([1, 2, 3]), PLACES).parts == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, r"returned 0 parts; expected 1 to 32"),
        ({f"part{number}": [0, 0, 0] for number in range(33)}, r"returned 33 parts; expected 1 to 32"),
        ({"a/b": [0, 0, 0]}, r"returned a part 'a/b'; expected a name of letters, digits, _ - \."),
        ({1: [0, 0, 0]}, r"returned a part 1; expected a name"),
        ({"x" * 41: [0, 0, 0]}, r"returned a part 'x+'?; expected a name"),
        ({"right": [0, float("nan"), 0]}, r"some_reward returned nan as part right for episode 1; expected a finite"),
        ({"right": [0, 0]}, r"some_reward returned shape \(2,\) as part right; expected 3 numbers, one per episode"),
    ],
)
def test_parts_that_are_wrong_are_named(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call_reward(returning(value), **TEXTS)


def test_a_reward_gets_episodes_and_grader_if_it_has_parameters_of_these_names() -> None:
    seen: dict[str, Any] = {}

    def asks(prompts, responses, examples, *, episodes=None, grader=None):
        seen.update(episodes=episodes, grader=grader)
        return [0, 0, 0]

    def asks_for_all(prompts, responses, examples, **options):
        seen.update(options=options)
        return [0, 0, 0]

    call_in_parts(asks, PLACES, episodes="rollout", grader="grader")
    call_in_parts(asks_for_all, PLACES, episodes="rollout", grader="grader")
    assert seen == {"episodes": "rollout", "grader": "grader", "options": {}}
    call_in_parts(functools.partial(asks, grader="own"), PLACES, episodes="rollout", grader="grader")
    assert seen["grader"] == "own"
