"""PPO in environments computes what stable-baselines3 computes, where it is installed."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")

from against_sb3 import differences


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_advantages_losses_and_updates_are_those_of_stable_baselines(environment: str) -> None:
    found = differences(environment)
    # The update is no small one: weights move by much more than the two differ.
    assert found.pop("moved") > 1e-2
    assert found.pop("clip_fraction") > 0
    assert found.pop("clipped") == pytest.approx(0, abs=1e-6)
    assert {name: value for name, value in found.items() if value > 1e-6} == {}
