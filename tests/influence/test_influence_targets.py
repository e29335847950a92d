"""Targets of IIF: by hand, and with the sign that scores expect."""

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


def test_the_targets_by_hand() -> None:
    # -(-1 * 0.5 + -2 * -1 + -3 * 2) / 3
    assert return_target(log_probs=LOG_PROBS, advantages=ADVANTAGES, mask=MASK).item() == pytest.approx(1.5)
    # -((-1 - 2) * -1 + -3 * 2) / 2
    last = torch.tensor([-1.0, 2.0])
    assert sequence_target(log_probs=LOG_PROBS, last_advantages=last, mask=MASK).item() == pytest.approx(1.5)
    chosen = torch.tensor([[False, True, False], [True, False, False]])
    assert action_target(log_probs=LOG_PROBS, chosen=chosen).item() == pytest.approx(2.5)


def test_padding_may_hold_anything() -> None:
    poisoned = LOG_PROBS.masked_fill(~MASK, torch.nan)
    for target in (
        return_target(log_probs=poisoned, advantages=ADVANTAGES, mask=MASK),
        sequence_target(log_probs=poisoned, last_advantages=torch.ones(2), mask=MASK),
        action_target(log_probs=poisoned, chosen=MASK),
    ):
        assert torch.isfinite(target)


def test_nothing_chosen_is_named() -> None:
    with pytest.raises(UserError, match="chosen: True nowhere"):
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
    # the same action in the same state helps, another one there hurts, another state does not matter
    assert scores[0] > 0 > scores[1]
    assert scores[2] == 0


def test_a_buffer_that_is_its_own_target_scores_its_good_episodes_above_zero_on_the_whole() -> None:
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
    # their mean is the squared length of the target's gradient
    length = sum(float(block.square().sum()) for block in direction.values())
    assert float(scores.mean()) == pytest.approx(length, rel=1e-4)
