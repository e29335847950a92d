"""What a run writes down about the packages that it uses."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from ippo_lightning.run import environment as room
from ippo_lightning.run.environment import environment, origin

MODULES = {"gymnasium", "minigrid", "highway_env", "Box2D", "stable_baselines3"}


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of environments is imported, and every package but the old one of Box2D is installed."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(room, "_version", lambda name: "" if name == "box2d-py" else "1.2")


@pytest.mark.usefixtures("imported")
def test_packages_of_environments_are_named_by_a_run_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    names = {"gymnasium", "minigrid", "highway-env", "box2d", "stable-baselines3"}
    assert names <= set(origin("")["versions"])
    assert "box2d-py" not in origin("")["versions"]  # it is not installed
    assert not names & set(environment())  # of which a resumed run warns


@pytest.mark.usefixtures("imported")
def test_a_run_of_texts_names_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", ModuleType("gymnasium"))
    assert set(origin("")["versions"]) & {"gymnasium", "minigrid", "highway-env", "box2d"} == {"gymnasium"}
