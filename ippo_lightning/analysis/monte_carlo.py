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
_HALF = 0.5
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
    is_known: np.ndarray
    """[rows] bool; False for a record whose rewards did not all arrive before the end of the buffer."""
    bootstrapped: int = 0
    """Records whose return goes on with the critic's value, because something cut their episode."""


def monte_carlo_of_transitions(episodes: ControlEpisodes, *, gamma: float, baseline: Baseline = "auto") -> MonteCarlo:
    """Return the Monte-Carlo advantages of transitions.

    `states`: mean return of the transitions with the same observation and action, minus that of the transitions with
    the same observation. It reads rewards alone: an episode that a limit cuts has the return until then, and one that
    the end of the buffer cuts is not known. `critic`: the return minus the critic's value; an episode that anything
    cuts goes on with the critic's value of the last state.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), its diagnosis, with `states`; there, the last episode counts, too.

    Args:
        episodes: transitions, those of each environment side by side and in order.
        gamma: discount per step, in [0, 1].
        baseline: `auto` is `states` if at least half of the transitions share their observation with another one, and
            at least half are known; else `critic`.

    Raises:
        UserError: the rows are no transitions.
    """
    if episodes.mask.shape[1] != 1:
        raise UserError(
            f"buffer: a row has {episodes.mask.shape[1]} steps; expected transitions, as ControlPPOModule has them"
        )
    last = _last_steps(episodes)
    clusters = np.append(0, np.cumsum(last)[:-1])
    is_known = episodes.done[:, 0].numpy()[last][clusters]
    states = _equal(episodes.observations)
    is_shared = np.bincount(states)[states] > 1
    if baseline == "critic" or (baseline == "auto" and (is_shared.mean() < _HALF or is_known.mean() < _HALF)):
        found = _returns(episodes, episodes.next_values[:, 0], gamma) - episodes.values[:, 0].double().numpy()
        cut = ~episodes.terminated[:, 0].numpy()[last][clusters]
        everything = np.ones(len(found), dtype=bool)
        return MonteCarlo(
            advantages=found, baseline="critic", clusters=clusters, is_known=everything, bootstrapped=int(cut.sum())
        )
    returns = _returns(episodes, torch.zeros_like(episodes.next_values[:, 0]), gamma)
    pairs = _equal(episodes.observations, episodes.actions)
    found = np.zeros(len(returns))
    known = returns[is_known]
    found[is_known] = group_means(known, pairs[is_known]) - group_means(known, states[is_known])
    # An action that is the only one in its state has the advantage 0, and no sign.
    found[np.abs(found) <= _ROUNDING * np.abs(returns).max(initial=0.0)] = 0.0
    return MonteCarlo(advantages=found, baseline="states", clusters=clusters, is_known=is_known)


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
    return MonteCarlo(
        advantages=found,
        baseline="group" if several.mean() >= _HALF else "batch",
        clusters=groups,
        is_known=np.ones(len(found), dtype=bool),
    )


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
    # By their bytes: images stay as small as they are. Adding 0 makes 0.0 of -0.0.
    parts = [np.ascontiguousarray((column.flatten(start_dim=1) + 0).numpy()).view(np.uint8) for column in columns]
    joined = np.concatenate(parts, axis=1)
    _, found = np.unique(joined.view(np.dtype((np.void, joined.shape[1]))), return_inverse=True)
    return np.asarray(found).reshape(-1)


def _returns(episodes: ControlEpisodes, next_values: torch.Tensor, gamma: float) -> np.ndarray:
    found = discounted_returns(
        rewards=episodes.rewards[:, 0],
        next_values=next_values,
        done=episodes.done[:, 0],
        group=episodes.group,
        gamma=gamma,
    )
    return np.asarray(found.numpy())


def _last_steps(episodes: ControlEpisodes) -> Any:
    """Return which transitions are the last of their episode in the buffer, shape [rows], bool."""
    group = episodes.group.numpy()
    return episodes.done[:, 0].numpy() | np.append(group[1:] != group[:-1], True)
