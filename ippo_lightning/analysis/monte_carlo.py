"""Advantages by Monte Carlo: what followed in the buffer itself, in place of what the critic expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.maths import discounted_returns
from ippo_lightning.records import ControlEpisodes, TextEpisodes

Baseline = Literal["auto", "states", "critic"]
_ROUNDING = 1e-9
"""Relative to the largest return: means of the same returns, added up in another order, differ by less."""


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """What the records of a buffer were worth, from the rewards that followed."""

    advantages: np.ndarray
    """[rows] float64; 0 where the buffer has nothing to compare a record with."""
    baseline: Literal["states", "critic", "group", "batch"]
    """What was subtracted from the returns."""
    clusters: np.ndarray
    """[rows] int64; records of one episode, or of one prompt, share a number."""
    cut: int = 0
    """Records whose episode goes on behind the end of the buffer, or was cut by a limit."""


def monte_carlo_of_transitions(episodes: ControlEpisodes, *, gamma: float, baseline: Baseline = "auto") -> MonteCarlo:
    """Return the Monte-Carlo advantages of transitions.

    `states`: mean return of the transitions with the same observation and action, minus that of the transitions with
    the same observation. `critic`: the return, minus the critic's value. The return of an episode that is not complete
    goes on with the critic's value of the last state.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), its diagnosis; there, the last episode of a buffer goes on with 0.

    Args:
        episodes: transitions, those of each environment side by side and in order.
        gamma: discount per step, in [0, 1].
        baseline: `auto` is `states` if at least half of the transitions share their observation with another one.

    Raises:
        UserError: the rows are no transitions.
    """
    if episodes.mask.shape[1] != 1:
        raise UserError(
            f"buffer: a row has {episodes.mask.shape[1]} steps; expected transitions, as ControlPPOModule has them"
        )
    returns = discounted_returns(
        rewards=episodes.rewards[:, 0],
        next_values=episodes.next_values[:, 0],
        done=episodes.done[:, 0],
        group=episodes.group,
        gamma=gamma,
    ).numpy()
    numbers, cut = _trajectories(episodes)
    states = _equal(episodes.observations)
    shared = np.bincount(states)[states] > 1
    if baseline == "critic" or (baseline == "auto" and shared.mean() < 0.5):
        values = episodes.values[:, 0].double().numpy()
        return MonteCarlo(advantages=returns - values, baseline="critic", clusters=numbers, cut=cut)
    pairs = _equal(episodes.observations, episodes.actions)
    found = group_means(returns, pairs) - group_means(returns, states)
    # An action that is the only one in its state has the advantage 0, and no sign.
    found[np.abs(found) <= _ROUNDING * np.abs(returns).max(initial=0.0)] = 0.0
    return MonteCarlo(advantages=found, baseline="states", clusters=numbers, cut=cut)


def monte_carlo_of_responses(episodes: TextEpisodes) -> MonteCarlo:
    """Return the reward of each response, minus the mean over the responses to its prompt.

    A response that is the only one to its prompt is compared with the mean over all responses.

    Args:
        episodes: responses.
    """
    rewards = episodes.outcome_rewards.double().numpy()
    _, groups = np.unique(episodes.group.numpy(), return_inverse=True)
    several = np.bincount(groups)[groups] > 1
    found = rewards - np.where(several, group_means(rewards, groups), rewards.mean())
    found[np.abs(found) <= _ROUNDING * np.abs(rewards).max(initial=0.0)] = 0.0
    return MonteCarlo(advantages=found, baseline="group" if several.mean() >= 0.5 else "batch", clusters=groups)


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for each row the mean over the rows of its group, shape [rows].

    Args:
        values: shape [rows].
        groups: shape [rows], int64, numbers from 0 on.
    """
    means: np.ndarray = (np.bincount(groups, weights=values) / np.maximum(np.bincount(groups), 1))[groups]
    return means


def _equal(*columns: torch.Tensor) -> np.ndarray:
    """Return a number per row, from 0 on, that is equal where all columns are."""
    parts = [column.flatten(start_dim=1).double().numpy() for column in columns]
    _, found = np.unique(np.concatenate(parts, axis=1), axis=0, return_inverse=True)
    return np.asarray(found).reshape(-1)


def _trajectories(episodes: ControlEpisodes) -> tuple[np.ndarray, int]:
    """Return the number of each row's episode, and how many rows belong to an episode that is not complete."""
    group, done = episodes.group.numpy(), episodes.done[:, 0].numpy()
    last: Any = done | np.append(group[1:] != group[:-1], True)
    numbers = np.append(0, np.cumsum(last)[:-1])
    is_complete = episodes.terminated[:, 0].numpy()[last]
    return numbers, int((~is_complete)[numbers].sum())
