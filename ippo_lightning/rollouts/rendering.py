"""One episode of a policy, in pictures: played and rendered in an environment of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from ippo_lightning.errors import UserError
from ippo_lightning.policies import ActorCritic
from ippo_lightning.records import RenderedEpisode
from ippo_lightning.rollouts.control import ControlRollouts
from ippo_lightning.rollouts.environments import EnvironmentSettings, make_environment
from ippo_lightning.rollouts.played_episodes import chosen_actions

_HEADLESS = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
"""Some environments open a window even for pictures, a sound device, or greet on the output."""
_USUAL_SPEED = 30.0


class EvenFrames:
    """Evenly spaced frames of an episode whose length is not known in advance, in bounded memory.

    Args:
        most: frames that are kept, >= 2. One more, and every second one is forgotten.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.every = 1
        """Steps from one frame to the next."""
        self.found: dict[int, np.ndarray] = {}

    def wants(self, step: int) -> bool:
        """Return whether a frame is due; others need not be rendered."""
        return step % self.every == 0

    def add(self, step: int, frame: np.ndarray) -> None:
        """Keep a frame, also one that is not due.

        Args:
            step: number of steps before it.
            frame: shape [height, width, 3].
        """
        if len(self.found) == self.most:
            self.every *= 2
            self.found = {number: kept for number, kept in self.found.items() if self.wants(number)}
        self.found[step] = frame


@torch.no_grad()
def render_episode(
    policy: ActorCritic,
    rollouts: ControlRollouts,
    *,
    seed: int,
    max_frames: int,
    max_size: int,
    max_steps: int,
    greedy: bool = False,
) -> RenderedEpisode:
    """Play one episode and render it; the environments of training and their statistics do not change.

    Args:
        policy: draws the actions from torch's random stream.
        rollouts: of training.
        seed: of the episode.
        max_frames: frames that are kept, >= 2.
        max_size: pixels of the longer side of a frame.
        max_steps: the episode is cut after so many.
        greedy: take the most probable action.

    Raises:
        UserError: the environment gives no pictures. It may raise anything else, too.
    """
    with _headless(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever an environment warns of, it is not about training
        environment = _with_pictures(rollouts.settings)
        try:
            frames = EvenFrames(max_frames)
            raw, _ = environment.reset(seed=seed)
            frames.add(0, _picture(environment, max_size))
            total, length, is_over = 0.0, 0, False
            while not is_over and length < max_steps:
                action = chosen_actions(policy, rollouts, np.asarray(raw)[None], greedy=greedy)[0]
                raw, reward, terminated, truncated, _ = environment.step(action)
                total, length, is_over = total + float(reward), length + 1, bool(terminated or truncated)
                if frames.wants(length) or is_over or length == max_steps:
                    frames.add(length, _picture(environment, max_size))
            speed = environment.metadata.get("render_fps")
        finally:
            environment.close()
    return RenderedEpisode(
        frames=frames.found,
        episode_return=total,
        length=length,
        is_over=is_over,
        frames_per_second=float(speed or _USUAL_SPEED),
    )


def _with_pictures(settings: EnvironmentSettings) -> Any:
    """Return an environment that renders arrays."""
    if "render_mode" in settings.options:
        # With a window of its own, training may share it with an environment that is made and closed here.
        raise UserError("environment.options: render_mode is set, and is not changed for pictures")
    plain = make_environment(settings)
    modes = plain.metadata.get("render_modes", [])
    plain.close()
    if "rgb_array" not in modes:
        raise UserError(f"environment.id: {settings.id} has no render mode rgb_array")
    return make_environment(settings, render_mode="rgb_array")


def _picture(environment: Any, max_size: int) -> np.ndarray:
    """Return what the environment shows now, uint8 [height, width, 3], made smaller if it is larger than allowed."""
    found = environment.render()
    if not isinstance(found, np.ndarray):
        raise UserError(f"environment.id: its render() returned a {type(found).__name__}; expected an array of pixels")
    image = Image.fromarray(found).convert("RGB")
    image.thumbnail((max_size, max_size))
    return np.array(image)


@contextmanager
def _headless() -> Iterator[None]:
    """Inside the block, pygame needs neither a window nor a sound device, unless the user has named one."""
    added = {name: value for name, value in _HEADLESS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
