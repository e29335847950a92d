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


def register() -> None:
    """Register the environments with gymnasium; a second time changes nothing."""
    for name, kind in {"Counter-v0": Counter, "Forgetful-v0": Forgetful, "Unreadable-v0": Unreadable}.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=kind, max_episode_steps=7)
