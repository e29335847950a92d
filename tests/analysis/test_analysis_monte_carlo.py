"""Monte-Carlo advantages, against tables computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.analysis.monte_carlo import monte_carlo_of_responses, monte_carlo_of_transitions
from ippo_lightning.errors import UserError
from ippo_lightning.records import ControlEpisodes

HALF = 0.5  # the discount: every number below is exact


def transitions(
    states: list[Any], actions: list[int], rewards: list[float], *, ends: str, group: list[int] | None = None
) -> ControlEpisodes:
    """Transitions; `ends` has a letter per row: T the environment ended, L a limit cut, a dot goes on."""
    rows = len(states)
    terminated = torch.tensor([letter == "T" for letter in ends])[:, None]
    zeros = torch.zeros(rows, 1)
    return ControlEpisodes(
        observations=torch.tensor(states)[:, None],
        actions=torch.tensor(actions)[:, None],
        mask=torch.ones(rows, 1, dtype=torch.bool),
        log_probs=zeros,
        ref_log_probs=zeros,
        values=torch.full((rows, 1), 0.25),
        next_values=torch.where(terminated, 0.0, 8.0),
        rewards=torch.tensor(rewards)[:, None],
        advantages=zeros,
        returns=zeros,
        outcome_rewards=torch.tensor(rewards),
        truncated=torch.zeros(rows, dtype=torch.bool),
        terminated=terminated,
        done=torch.tensor([letter != "." for letter in ends])[:, None],
        group=torch.tensor(group or [0] * rows),
    )


def test_the_advantage_of_an_action_is_its_mean_return_minus_that_of_its_state() -> None:
    # Returns: 0.5, 1 | 0 | 1, 2 | 0. State 0: actions 1, 0, 1, 0 with returns 0.5, 0, 1, 0.
    rows = transitions([0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 2, 0], ends=".TT.TT")
    found = monte_carlo_of_transitions(rows, gamma=HALF)
    assert found.baseline == "states"
    state_0, state_1 = 1.5 / 4, 3 / 2
    expected = [0.75 - state_0, 1 - state_1, 0 - state_0, 0.75 - state_0, 2 - state_1, 0 - state_0]
    np.testing.assert_array_equal(found.advantages, expected)
    np.testing.assert_array_equal(found.clusters, [0, 0, 1, 2, 2, 3])
    assert found.is_known.all()


def test_observations_are_equal_if_all_their_numbers_are() -> None:
    states = [[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [1.0, 0.5]]
    found = monte_carlo_of_transitions(transitions(states, [0, 1, 0, 1], [4, 2, 7, 9], ends="TTTT"), gamma=HALF)
    assert found.baseline == "states"
    np.testing.assert_array_equal(found.advantages, [1, -1, 0, 0])


def test_an_action_without_an_alternative_has_the_advantage_zero_without_rounding() -> None:
    rewards = [0.1, 0.2, 0.3, 0.7, 0.1]
    found = monte_carlo_of_transitions(transitions([0] * 5, [2] * 5, rewards, ends="TTTTT"), gamma=HALF)
    np.testing.assert_array_equal(found.advantages, np.zeros(5))


def test_two_actions_of_equal_returns_have_no_sign_by_rounding() -> None:
    # Both actions of state 0 lead to the rewards 0.1, 0.7 and 0.4, but their means differ in the last bit.
    rewards = [number for last in (0.1, 0.7, 0.4) * 2 for number in (0, last)]
    rows = transitions([0, 9] * 6, [1, 0] * 3 + [2, 0] * 3, rewards, ends=".T" * 6)
    found = monte_carlo_of_transitions(rows, gamma=0.3)
    np.testing.assert_array_equal(found.advantages, np.zeros(12))


def test_where_no_observation_repeats_the_critic_is_the_baseline() -> None:
    rows = transitions([[0.0], [1.0], [2.0]], [0, 1, 0], [0, 1, 4], ends=".TT")
    found = monte_carlo_of_transitions(rows, gamma=HALF)
    assert found.baseline == "critic"
    np.testing.assert_array_equal(found.advantages, [0.5 - 0.25, 1 - 0.25, 4 - 0.25])
    forced = monte_carlo_of_transitions(rows, gamma=HALF, baseline="states")
    assert forced.baseline == "states"
    np.testing.assert_array_equal(forced.advantages, np.zeros(3))


def test_with_the_critic_a_cut_episode_goes_on_with_the_value_of_its_last_state() -> None:
    # Environment 0 ends by a limit, then at the end of the buffer; environment 1 ends by itself.
    rows = transitions([[0.0], [1.0], [2.0], [3.0]], [0] * 4, [1, 1, 1, 2], ends=".L.T", group=[0, 0, 0, 1])
    found = monte_carlo_of_transitions(rows, gamma=HALF, baseline="critic")
    at_limit = 1 + HALF * 8
    np.testing.assert_array_equal(found.advantages + 0.25, [1 + HALF * at_limit, at_limit, 1 + HALF * 8, 2])
    np.testing.assert_array_equal(found.clusters, [0, 0, 1, 2])
    assert found.bootstrapped == 3
    assert found.is_known.all()


def test_with_states_a_limit_ends_an_episode_and_the_end_of_the_buffer_leaves_it_out() -> None:
    # Returns: 2 by the limit, 0 by itself; the last one, of the same state and of 50, is not finished.
    rows = transitions([0, 0, 0], [1, 0, 1], [2, 0, 50], ends="LT.")
    found = monte_carlo_of_transitions(rows, gamma=HALF)
    assert found.baseline == "states"
    np.testing.assert_array_equal(found.advantages, [1, -1, 0])
    np.testing.assert_array_equal(found.is_known, [True, True, False])
    assert found.bootstrapped == 0


def test_fragments_that_are_mostly_unfinished_have_the_critic_as_baseline() -> None:
    rows = transitions([0, 0, 0], [1, 0, 1], [2, 0, 1], ends="T..", group=[0, 1, 2])
    assert monte_carlo_of_transitions(rows, gamma=HALF).baseline == "critic"


def test_rows_of_several_steps_are_refused() -> None:
    rows = transitions([0, 0], [0, 0], [0, 0], ends="TT")
    wide = ControlEpisodes.concat([rows]).evolve(
        **{
            name: getattr(rows, name).repeat(1, 2)
            for name, layout in ControlEpisodes.columns().items()
            if layout.axis == "steps"
        }
    )
    with pytest.raises(UserError, match="a row has 2 steps; expected transitions"):
        monte_carlo_of_transitions(wide, gamma=HALF)


def test_a_response_is_compared_with_the_others_of_its_prompt_or_with_all() -> None:
    episodes = make_episodes([2] * 5, [3] * 5)
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5])
    grouped = episodes.evolve(group=torch.tensor([4, 4, 7, 7, 9]), outcome_rewards=rewards)
    found = monte_carlo_of_responses(grouped)
    assert found.baseline == "group"
    np.testing.assert_allclose(found.advantages, [0.5, -0.5, 0, 0, 0.5 - 3.5 / 5], atol=1e-12)
    alone = monte_carlo_of_responses(grouped.evolve(group=torch.arange(5)))
    assert alone.baseline == "batch"
    np.testing.assert_allclose(alone.advantages, rewards.double() - 3.5 / 5, atol=1e-12)
