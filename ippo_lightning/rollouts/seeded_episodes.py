"""An environment whose every episode has a seed of its own, so that its state can be rebuilt in another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np


class SeededEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Resets each episode with a seed that follows from its number, and remembers the actions since then.

    gymnasium seeds an environment once, and later episodes continue its random stream, which no checkpoint can contain.
    With a seed per episode, seed and actions are its whole state, if the environment draws from no other stream.

    Args:
        env: any environment.
        seed: of the run.
        index: of the environment among those of its process.
        episode_seeds: of the first episodes, in their order; later ones have the seed of the last.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, seed: int, index: int, episode_seeds: Sequence[int] = ()
    ) -> None:
        super().__init__(env)
        self.seed, self.index, self.episode_seeds = seed, index, tuple(episode_seeds)
        self.episode = -1
        self.actions: list[np.ndarray] = []
        self._last: tuple[Any, Any, bool, bool, dict[str, Any]] | None = None
        self._is_rebuilt = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode.

        Args:
            seed: not used: each episode has its own.
            options: of the environment.
        """
        self.episode += 1
        return self._begun(options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Do one step; the first one after `rebuild` returns what the last one before the checkpoint returned.

        Args:
            action: of the environment; not used after `rebuild`.
        """
        if self._is_rebuilt:
            # In this way a vector environment learns of the state, and of an episode that is over, by its own means.
            self._is_rebuilt = False
            assert self._last is not None, "set by rebuild"
            return self._last
        self.actions.append(np.array(action))
        self._last = self.env.step(action)
        return self._last

    def episode_state(self) -> tuple[int, list[np.ndarray]]:
        """Return the number of the episode, and its actions so far."""
        return self.episode, self.actions

    def rebuild(self, states: Sequence[tuple[int, Sequence[np.ndarray]]]) -> float:
        """Play the episode of a checkpoint again; return the sum of its rewards.

        Args:
            states: what `episode_state` returned, of each environment of the process.
        """
        self.episode, actions = states[self.index]
        self._begun(None)
        total = 0.0
        for action in actions:
            # An action of shape [] is a number to an environment.
            self._last = self.env.step(action if np.ndim(action) else action[()])
            total += float(self._last[1])
            if (self._last[2] or self._last[3]) and len(self.actions) + 1 < len(actions):
                break  # another environment than before: it ended earlier, and a step after the end is an error
            self.actions.append(np.array(action))
        self._is_rebuilt = True
        return total

    def _begun(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self.actions, self._is_rebuilt = [], False
        observation, info = self.env.reset(seed=self._seed_of_episode(), options=options)
        self._last = (observation, 0.0, False, False, info)
        return observation, info

    def _seed_of_episode(self) -> int:
        if self.episode_seeds:
            return self.episode_seeds[min(self.episode, len(self.episode_seeds) - 1)]
        # Not seed + episode: neighbouring runs, environments and episodes would share seeds.
        return int(np.random.SeedSequence((self.seed, self.index, self.episode)).generate_state(1)[0])
