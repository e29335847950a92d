"""Targets of IIF equal values computed by hand, and have the sign that scores expect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import (
    action_target,
    influence_scores,
    return_target,
    sequence_target,
    target_gradient,
)

LOG_PROBS = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
ADVANTAGES = torch.tensor([[0.5, -1.0, 9.0], [2.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_the_targets_equal_values_computed_by_hand() -> None:
    # -(-1 * 0.5 + -2 * -1 + -3 * 2) / 3
    assert return_target(log_probs=LOG_PROBS, advantages=ADVANTAGES, mask=MASK).item() == pytest.approx(1.5)
    # -((-1 - 2) * -1 + -3 * 2) / 2
    last = torch.tensor([-1.0, 2.0])
    assert sequence_target(log_probs=LOG_PROBS, last_advantages=last, mask=MASK).item() == pytest.approx(1.5)
    chosen = torch.tensor([[False, True, False], [True, False, False]])
    assert action_target(log_probs=LOG_PROBS, chosen=chosen).item() == pytest.approx(2.5)


def test_padding_may_contain_anything() -> None:
    poisoned = LOG_PROBS.masked_fill(~MASK, torch.nan)
    for target in (
        return_target(log_probs=poisoned, advantages=ADVANTAGES, mask=MASK),
        sequence_target(log_probs=poisoned, last_advantages=torch.ones(2), mask=MASK),
        action_target(log_probs=poisoned, chosen=MASK),
    ):
        assert torch.isfinite(target)


def test_a_target_without_actions_is_refused() -> None:
    with pytest.raises(UserError, match=r"chosen: all of \[2, 3\] are False"):
        action_target(log_probs=LOG_PROBS, chosen=torch.zeros_like(MASK))


def test_an_episode_that_raises_the_targets_probability_scores_above_zero() -> None:
    # two states, three actions; the target is action 2 in state 0
    model = nn.Linear(2, 3, bias=False)
    states, actions = torch.eye(2)[[0, 0, 1]], torch.tensor([2, 1, 2])
    advantages = torch.tensor([1.0, 1.0, 1.0])

    def log_probs(module: nn.Module) -> torch.Tensor:
        return module(states).log_softmax(-1).gather(1, actions[:, None])

    chosen = torch.tensor([[True], [False], [False]])
    direction = target_gradient(model, lambda m, _: action_target(log_probs=log_probs(m), chosen=chosen), [None])
    scores = influence_scores(model, lambda m, _: -advantages * log_probs(m).squeeze(1), [None], direction)
    # The same action in the same state raises the probability, another action there lowers it, another state does not
    # change it.
    assert scores[0] > 0 > scores[1]
    assert scores[2] == 0


def test_the_mean_score_of_a_buffer_that_is_its_own_target_is_above_zero() -> None:
    torch.manual_seed(0)
    model, states = nn.Linear(4, 3), torch.randn(32, 4)
    actions, advantages = torch.randint(3, (32,)), torch.randn(32)

    def log_probs(module: nn.Module) -> torch.Tensor:
        return module(states).log_softmax(-1).gather(1, actions[:, None])

    mask = torch.ones(32, 1, dtype=torch.bool)
    direction = target_gradient(
        model, lambda m, _: return_target(log_probs=log_probs(m), advantages=advantages[:, None], mask=mask), [None]
    )
    scores = influence_scores(model, lambda m, _: -advantages * log_probs(m).squeeze(1), [None], direction)
    # The mean score is the squared norm of the target's gradient.
    squared_norm = sum(float(block.square().sum()) for block in direction.values())
    assert float(scores.mean()) == pytest.approx(squared_norm, rel=1e-4)
