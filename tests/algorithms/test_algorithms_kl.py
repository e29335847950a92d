"""Controllers of the KL penalty: where they steer, how far one update goes, and what a checkpoint keeps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.algorithms import AdaptiveKLController, FixedKLController
from ippo_lightning.errors import UserError


def test_a_fixed_coefficient_stays() -> None:
    controller = FixedKLController(coef=0.3)
    controller.update(kl=100.0, num_episodes=1000)
    assert controller.coef == 0.3


@pytest.mark.parametrize(
    ("kl", "error"),
    # clip(kl / 6 - 1, -0.2, 0.2)
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (7.2, 0.2), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)],
)
@pytest.mark.parametrize("num_episodes", [0, 64, 1000])
def test_the_adaptive_coefficient_follows_the_rule_of_the_paper(kl: float, error: float, num_episodes: int) -> None:
    controller = AdaptiveKLController(coef=0.5, target=6.0, horizon=1000.0)
    controller.update(kl=kl, num_episodes=num_episodes)
    assert controller.coef == pytest.approx(0.5 * (1 + error * num_episodes / 1000), rel=1e-12)


def test_the_constant_of_the_paper_is_a_horizon_of_ten_batches() -> None:
    # beta <- beta (1 + K e) with K = 0.1; e = 0.2 twice, then -0.2
    controller = AdaptiveKLController(coef=1.0, target=2.0, horizon=640.0)
    for kl in (100.0, 100.0, 0.0):
        controller.update(kl=kl, num_episodes=64)
    assert controller.coef == pytest.approx(1.02 * 1.02 * 0.98, rel=1e-12)


@given(kl=st.floats(-1e6, 1e6), num_episodes=st.integers(0, 10**6), horizon=st.floats(1e-3, 1e6))
def test_one_update_moves_the_coefficient_by_a_fifth_at_most(kl: float, num_episodes: int, horizon: float) -> None:
    controller = AdaptiveKLController(coef=1.0, horizon=horizon)
    controller.update(kl=kl, num_episodes=num_episodes)
    assert 0.8 <= controller.coef <= 1.2


@pytest.mark.parametrize("controller", [FixedKLController, AdaptiveKLController])
def test_the_coefficient_survives_a_checkpoint(controller) -> None:
    first, second = controller(coef=0.3), controller(coef=0.3)
    first.update(kl=20.0, num_episodes=500)
    second.update(kl=0.1, num_episodes=900)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.update(kl=1.0, num_episodes=77)
    assert first.coef == second.coef


@pytest.mark.parametrize("coef", [-0.1, math.inf, math.nan])
def test_a_coefficient_out_of_range_is_refused(coef: float) -> None:
    for controller in (FixedKLController, AdaptiveKLController):
        with pytest.raises(UserError, match=rf"kl_controller\.coef: {coef} is out of range"):
            controller(coef=coef)


@pytest.mark.parametrize("name", ["coef", "target", "horizon"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_adaptive_controller_needs_positive_numbers(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"kl_controller\.{name}: {value} is out of range; expected a number > 0"):
        AdaptiveKLController(**{name: value})


def test_a_fixed_coefficient_of_zero_turns_the_penalty_off() -> None:
    assert FixedKLController(coef=0.0).coef == 0.0
