from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.report.plan_changes import plan_changes
from ippo_lightning.report.records import EpisodeRow, Method, Run


def method(*changes):
    episodes = tuple(
        EpisodeRow(
            iteration=0, prompt="p", response="r", label="", reward=1.0, advantage=0.0, score=None, weight=1.0,
            changes=one,
        )
        for one in changes
    )  # fmt: skip
    return Method("ippo", "I-PPO", (Run(Path(), "ippo", 1, episodes=episodes, results={}),))


def test_drops_and_factors_are_counted_by_reason():
    found = plan_changes(
        method((("length", 0.0),), (("length", 0.0), ("influence", 2.0)), (("influence", 0.5),), (("influence", 0.0),))
    )
    assert list(found) == ["length", "influence"]
    assert (found["length"].dropped, found["length"].scaled, found["length"].mean_factor) == (0.5, 0.0, None)
    assert (found["influence"].dropped, found["influence"].scaled) == (0.25, 0.5)
    assert found["influence"].mean_factor == pytest.approx(1.25, rel=1e-12)


def test_two_changes_of_one_episode_for_one_reason_count_once():
    found = plan_changes(method((("influence", 0.0), ("influence", 3.0)), (("influence", 2.0), ("influence", 3.0))))
    assert (found["influence"].dropped, found["influence"].scaled, found["influence"].mean_factor) == (0.5, 0.5, 6.0)


def test_episodes_without_a_record_of_changes_do_not_count():
    assert plan_changes(method(None, None)) == {}
    assert plan_changes(method(None, (("influence", 0.0),), ()))["influence"].dropped == 0.5


def test_the_table_stays_short():
    assert len(plan_changes(method(*(((f"reason {i}", 0.0),) for i in range(100))))) == 12
