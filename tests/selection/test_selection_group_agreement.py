"""Groups of demonstrations: to the bit the same, whether their gradients come at once or one after the other."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_parts import prepared, tiny_data, tiny_loop, tiny_module

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.selection import grouped_gradients, target_gradients


def first_scored(module: PPOModule, episodes: Episodes, callback: InfluenceFilter) -> UpdatePlan:
    """The plan of an iteration in which groups are due."""
    data = tiny_data()
    data.setup()
    plan = UpdatePlan(episodes=episodes)
    callback.on_rollout_end(SimpleNamespace(datamodule=data, should_stop=False), module, plan)
    return plan


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> PPOModule:
    module = tiny_module()
    tiny_loop(tmp_path_factory.mktemp("run") / "run", module, max_iterations=1).fit()  # leaves Adam with a state
    return module


@pytest.fixture
def episodes(module: PPOModule) -> Episodes:
    torch.manual_seed(2)
    return prepared(module)


@pytest.mark.parametrize(
    "scoring",
    [
        {"adam_aware": True},
        {"normalise": "cosine", "exclude": ["*embed*"]},
        {"method": "finite_difference"},
        {"refresh_every_n_iterations": 2, "adam_aware": True},
    ],
    ids=["adam_aware", "cosine", "finite_difference", "kept"],
)
def test_groups_one_after_the_other_give_to_the_bit_what_all_at_once_give(
    scoring: dict[str, Any], module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (True, False):
        for part in (grouped_gradients, target_gradients):
            monkeypatch.setattr(part, "fit_at_once", lambda *arguments, at_once=at_once, **named: at_once)
        callback = InfluenceFilter(scoring=ScoringSettings(health_groups=3, **scoring))
        plan = first_scored(module, episodes, callback)
        numbers = {name: value for name, value in plan.metrics.items() if not name.startswith("time/")}
        scores = plan.history[0].scores
        assert scores is not None
        found.append((scores.tolist(), numbers))
    assert "influence/halves_cosine" in found[0][1]
    assert found[0] == found[1]


def test_a_row_without_a_finite_score_is_named_once_and_does_not_count_in_the_health(
    module: PPOModule, episodes: Episodes
) -> None:
    advantages = episodes.advantages.clone()
    advantages[0] = torch.nan  # the first row of each sample
    callback = InfluenceFilter(on_nonfinite="skip", scoring=ScoringSettings(health_groups=3))
    with pytest.warns(UserWarning, match="NaN or infinity in the score of episode 0") as told:
        plan = first_scored(module, episodes.evolve(advantages=advantages), callback)
    assert len([one for one in told if "NaN or infinity" in str(one.message)]) == 1
    assert not plan.keep[0]
    assert all(math.isfinite(value) for value in plan.metrics.values())
    assert "influence/sign_certain_fraction" in plan.metrics
