"""Which way actions lead on a map, and the records that become arrows."""

from __future__ import annotations

import numpy as np
import pytest

from ippo_lightning.analysis.grid_map import Arrow, GridMap, arrows_of, map_of
from ippo_lightning.rollouts.environments import EnvironmentSettings

LEFT, DOWN, RIGHT, UP = (0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)


@pytest.mark.parametrize("slippery", [False, True])
def test_frozen_lake_is_a_map_also_where_steps_slip_to_the_sides(slippery: bool) -> None:
    found = map_of(EnvironmentSettings(id="FrozenLake-v1", options={"is_slippery": slippery}))
    assert found is not None
    assert found.letters == ("SFFF", "FHFH", "FFFH", "HFFG")
    assert found.directions == {0: LEFT, 1: DOWN, 2: RIGHT, 3: UP}


@pytest.mark.parametrize("name", ["CartPole-v1", "Taxi-v4", "Blackjack-v1"])
def test_other_environments_have_no_map(name: str) -> None:
    # Taxi has a drawing, which is not one field per observation.
    wrappers = ["FlattenObservation"] if name == "Blackjack-v1" else []
    assert map_of(EnvironmentSettings(id=name, wrappers=wrappers)) is None


def test_records_are_counted_by_field_action_and_sign() -> None:
    grid = GridMap(letters=("SFF", "FFG"), directions={0: LEFT, 2: RIGHT})
    found = arrows_of(
        grid,
        observations=np.array([4, 4, 4, 0, 0, 1]),
        actions=np.array([2, 2, 2, 0, 1, 0]),
        estimates=np.array([1.0, 2.0, -1.0, -1.0, 1.0, 0.0]),
        monte_carlo=np.array([-1.0, 1.0, -1.0, 3.0, 1.0, 1.0]),
    )
    # Action 1 moves nowhere, and an estimate of 0 has no sign.
    assert found == [
        Arrow(field=(0, 0), direction=LEFT, is_positive=False, count=1, wrong=1),
        Arrow(field=(1, 1), direction=RIGHT, is_positive=False, count=1, wrong=0),
        Arrow(field=(1, 1), direction=RIGHT, is_positive=True, count=2, wrong=1),
    ]
