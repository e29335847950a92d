"""An episode in pictures is an episode as evaluations play it, and its frames are those of its steps."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small_environments import register

from ippo_lightning.errors import UserError
from ippo_lightning.policies import MLP, ActorCritic
from ippo_lightning.records import RenderedEpisode
from ippo_lightning.rollouts import ControlRollouts, EnvironmentSettings, play_episodes
from ippo_lightning.rollouts.rendering import EvenFrames, render_episode

register()


def parts_of(name: str, **given: Any) -> tuple[ActorCritic, ControlRollouts]:
    rollouts = ControlRollouts(EnvironmentSettings(id=name, **given))
    torch.manual_seed(5)
    return MLP(hidden=[8]).build(rollouts.spaces.observations, rollouts.spaces.actions), rollouts


def rendered(policy: ActorCritic, rollouts: ControlRollouts, **given: Any) -> RenderedEpisode:
    torch.manual_seed(1)
    limits = {"max_frames": 60, "max_size": 320, "max_steps": 2000}
    return render_episode(policy, rollouts, **{"seed": 3, **limits, **given})


@pytest.mark.parametrize("most", [2, 3, 8, 9])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 100])
def test_frames_are_evenly_spaced_whatever_the_length(most: int, length: int) -> None:
    frames = EvenFrames(most)
    for step in range(length + 1):
        if frames.wants(step) or step == length:
            frames.add(step, np.full(1, step))
    steps = list(frames.found)
    assert (steps[0], steps[-1]) == (0, length)
    assert len(steps) <= most
    assert len(steps) >= min(most // 2, length + 1)
    assert all(later - step == frames.every for step, later in pairwise(steps[:-1]))
    assert all(int(frame[0]) == step for step, frame in frames.found.items())


def test_each_frame_is_that_of_its_step() -> None:
    found = rendered(*parts_of("Painted-v0"), seed=4)
    assert list(found.frames) == list(range(found.length + 1))
    assert {step: set(frame.flatten().tolist()) for step, frame in found.frames.items()} == {
        step: {10 * step} for step in found.frames
    }
    assert found.episode_return == sum(range(found.length + 1))
    assert (found.is_over, found.frames_per_second) == (True, 10)


def test_a_long_episode_is_cut_and_a_large_picture_is_made_smaller() -> None:
    policy, rollouts = parts_of("Painted-v0")
    with torch.no_grad():
        policy.actor[-1].bias.copy_(torch.tensor([0.0, 0, 0, -100]))  # action 3 ends an episode
    found = rendered(policy, rollouts, max_steps=5, max_size=16)
    assert (found.length, found.is_over) == (5, False)
    assert {frame.shape for frame in found.frames.values()} == {(8, 16, 3)}


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("greedy", [False, True])
def test_it_is_the_episode_that_an_evaluation_plays(name: str, greedy: bool) -> None:
    normalises = {} if name == "FrozenLake-v1" else {"normalise_observations": True}
    policy, rollouts = parts_of(name, max_episode_steps=20, **normalises)
    rollouts.collect(policy, num_steps=50, gamma=0.9)
    before = {key: str(value) for key, value in rollouts.state_dict().items()}
    torch.manual_seed(1)
    expected = play_episodes(policy, rollouts, seeds=[3], greedy=greedy)
    found = rendered(policy, rollouts, greedy=greedy, max_frames=2, max_size=16)
    assert [(found.episode_return, found.length)] == expected
    assert {key: str(value) for key, value in rollouts.state_dict().items()} == before
    rollouts.close()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Counter-v0", {}, "^environment.id: Counter-v0 has no render mode rgb_array$"),
        ("CartPole-v1", {"render_mode": "rgb_array"}, "render_mode is set, and is not changed"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_environment_without_pictures_is_an_error_and_no_warning(
    name: str, options: dict[str, Any], message: str
) -> None:
    parts = parts_of(name, options=options)
    with pytest.raises(UserError, match=message):
        rendered(*parts)


def test_the_variables_of_the_process_stay_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    before = dict(os.environ)
    rendered(*parts_of("Painted-v0"))
    assert dict(os.environ) == before
