"""Episodes of a policy in environments of their own, for evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.policies import ActorCritic
from ippo_lightning.rollouts.control import ControlRollouts
from ippo_lightning.rollouts.environments import make_vector
from ippo_lightning.rollouts.running_moments import normalised

_EVALUATED_TOGETHER = 16
_ENDLESS = 1_000_000


def chosen_actions(policy: ActorCritic, rollouts: ControlRollouts, raw: np.ndarray, *, greedy: bool) -> np.ndarray:
    """Return a policy's actions as environments take them, [rows] or [rows, *shape].

    Args:
        policy: draws the actions from torch's random stream.
        rollouts: of training; its statistics normalise observations and do not change.
        raw: what environments show, [rows, *shape].
        greedy: take the most probable action.
    """
    seen = normalised(
        rollouts.spaces.of_environment(raw), rollouts.observation_moments, clip=rollouts.settings.clip_normalised
    )
    device = next(policy.parameters()).device
    return rollouts.spaces.to_environment(policy.act(torch.from_numpy(seen).to(device), greedy=greedy).cpu().numpy())


@torch.no_grad()
def play_episodes(
    policy: ActorCritic, rollouts: ControlRollouts, *, seeds: Sequence[int], greedy: bool = False
) -> list[tuple[float, int]]:
    """Play one episode per seed in environments of their own; return its return and length, in the order of the seeds.

    Args:
        policy: draws the actions from torch's random stream.
        rollouts: of training; its statistics normalise observations and do not change.
        seeds: of the episodes, at least one.
        greedy: take the most probable action.

    Raises:
        UserError: an episode of a million steps; such an environment needs a limit.
    """
    settings = replace(rollouts.settings, vectorization="sync", autoreset="same_step")
    # Fixed in advance which environment plays which episodes: if the first to be ready took the next one, then short
    # episodes would be counted more often than long ones.
    parts = [list(seeds[first::_EVALUATED_TOGETHER]) for first in range(min(len(seeds), _EVALUATED_TOGETHER))]
    vector = make_vector(settings, seed=0, episode_seeds=parts)
    left = np.array([len(part) for part in parts])
    returns, lengths = np.zeros(len(parts)), np.zeros(len(parts), dtype=np.int64)
    found: dict[int, tuple[float, int]] = {}
    raw, _ = vector.reset()
    while left.any():
        actions = chosen_actions(policy, rollouts, raw, greedy=greedy)
        raw, rewards, terminated, truncated, _ = vector.step(actions)
        returns, lengths = returns + rewards, lengths + 1
        for index in np.flatnonzero(terminated | truncated):
            if left[index]:
                place = int(index) + _EVALUATED_TOGETHER * (len(parts[index]) - int(left[index]))
                found[place] = float(returns[index]), int(lengths[index])
                left[index] -= 1
            returns[index], lengths[index] = 0.0, 0
        if lengths.max() >= _ENDLESS:
            raise UserError(
                f"environment.max_episode_steps: null, and an episode of {settings.id} has not ended after {_ENDLESS} "
                "steps; set a limit"
            )
    vector.close()
    return [found[place] for place in range(len(seeds))]
