"""Records of an environment that is a map: which way its actions lead, and how often each was taken where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ippo_lightning.errors import UserError
from ippo_lightning.rollouts.environments import EnvironmentSettings, make_environment

_MOST_FIELDS = 1024


@dataclass(frozen=True, kw_only=True)
class GridMap:
    """A map whose fields are the observations, counted row by row."""

    letters: tuple[str, ...]
    """One text per row of the map, with a letter for each field."""
    directions: dict[int, tuple[float, float]]
    """Action to the way it leads, (rows down, columns right), of length 1; without actions that do not move."""

    @property
    def width(self) -> int:
        """Fields of a row."""
        return len(self.letters[0])


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """Records with one observation, one action and one sign of the estimated advantage."""

    field: tuple[int, int]
    """Row and column."""
    direction: tuple[float, float]
    is_positive: bool
    """The sign of the estimate."""
    count: int
    wrong: int
    """Records whose Monte-Carlo advantage has the other sign."""


def map_of(settings: EnvironmentSettings) -> GridMap | None:
    """Return the map of an environment; None if it has none.

    An environment has a map if its observations are numbers from 0 on, its `desc` is a rectangle of as many letters,
    and its table `P` tells where each action leads, as in FrozenLake.

    Args:
        settings: of the run.
    """
    try:
        environment: Any = make_environment(settings)
    except UserError:  # its package is not installed here: the other figures need no map
        return None
    plain = environment.unwrapped
    size, start = getattr(environment.observation_space, "n", None), getattr(environment.observation_space, "start", 0)
    fields, table = np.asarray(getattr(plain, "desc", None)), getattr(plain, "P", None)
    environment.close()
    if size is None or start != 0 or not isinstance(table, dict) or fields.ndim != 2:
        return None
    letters = fields.astype("U1")
    if letters.size != int(size) or letters.size > _MOST_FIELDS:
        return None
    width = letters.shape[1]
    directions = {
        int(action): way
        for action in table.get(0, {})
        if (way := _direction(table, int(action), size=int(size), width=width)) is not None
    }
    return GridMap(letters=tuple("".join(row) for row in letters), directions=directions)


def _direction(table: Any, action: int, *, size: int, width: int) -> tuple[float, float] | None:
    """Return the mean step of an action over the map; on slippery ice the steps to both sides cancel."""
    total = np.zeros(2)
    for state in range(size):
        for probability, following, *_ in table[state][action]:
            step = np.subtract(divmod(int(following), width), divmod(state, width))
            if np.abs(step).max() <= 1:  # a fall off a cliff leads back to the start
                total += float(probability) * step
    # What remains across, because a map has holes, is no direction.
    total[np.abs(total) < np.abs(total).max() / 2] = 0.0
    length = float(np.hypot(*total))
    return (float(total[0] / length), float(total[1] / length)) if length else None


def arrows_of(
    grid: GridMap, *, observations: np.ndarray, actions: np.ndarray, estimates: np.ndarray, monte_carlo: np.ndarray
) -> list[Arrow]:
    """Count records by field, action and sign of their estimate; without actions that do not move.

    Args:
        grid: the map.
        observations: [rows] int64, of some records.
        actions: [rows] int64.
        estimates: [rows], estimated advantages; a record with the estimate 0 is not shown.
        monte_carlo: [rows], Monte-Carlo advantages.
    """
    counts: Counter[tuple[int, int, bool]] = Counter()
    wrong: Counter[tuple[int, int, bool]] = Counter()
    for state, action, estimate, true in zip(observations, actions, estimates, monte_carlo, strict=True):
        if int(action) in grid.directions and estimate != 0:
            key = (int(state), int(action), bool(estimate > 0))
            counts[key] += 1
            wrong[key] += bool(estimate * true < 0)
    return [
        Arrow(
            field=divmod(state, grid.width),
            direction=grid.directions[action],
            is_positive=is_positive,
            count=count,
            wrong=wrong[state, action, is_positive],
        )
        for (state, action, is_positive), count in sorted(counts.items())
    ]
