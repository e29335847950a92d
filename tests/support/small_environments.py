"""Environments whose every number is known in advance."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Counter(gymnasium.Env[Any, Any]):
    """Shows (steps since the reset, number drawn at the reset); action 3 ends the episode; the reward is the step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.drawn = 0, float(np.float32(self.np_random.random()))
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._seen(), float(self.steps), bool(action == 3), False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.steps, self.drawn], dtype=np.float32)


class Forgetful(Counter):
    """Draws from a stream of its own, which no seed reaches."""

    drawn_anywhere = 0

    def _seen(self) -> np.ndarray:
        Forgetful.drawn_anywhere += 1
        return np.array([self.steps, Forgetful.drawn_anywhere], dtype=np.float32)


class Unreadable(Counter):
    """Shows a dictionary."""

    observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})  # type: ignore[assignment]


class Painted(Counter):
    """Has pictures of one colour, 10 times the number of steps since the reset; 40 high and 80 wide."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((40, 80, 3), 10 * self.steps, dtype=np.uint8)


def register() -> None:
    """Register the environments with gymnasium; a second time changes nothing."""
    kinds = {"Counter-v0": Counter, "Forgetful-v0": Forgetful, "Unreadable-v0": Unreadable, "Painted-v0": Painted}
    for name, kind in kinds.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=kind, max_episode_steps=7)
