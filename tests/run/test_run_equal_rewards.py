"""Rewards that are all equal in the first iterations get one line, worded for tasks where that is right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.run.equal_rewards import EqualRewards


def said(rewards: Sequence[Sequence[float]], *, first: int = 1) -> list[str]:
    """The lines of a run with these rewards in its iterations."""
    watch = EqualRewards()
    lines = []
    for iteration, given in enumerate(rewards, first):
        episodes = make_episodes([1] * len(given), [1] * len(given)).evolve(outcome_rewards=torch.tensor(given))
        lines.append(watch.line(episodes, iteration=iteration))
    return [line for line in lines if line is not None]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.0, "Where right answers are rare at the start, this is normal"), (1.0, "a reward that does not look at")],
)
def test_equal_rewards_get_one_line_with_the_likely_reasons(value: float, reason: str) -> None:
    (line,) = said([[value] * 4] * 6)
    assert line.startswith(f"warning: all 12 rewards of the first 3 iterations are {value:g}, ")
    assert reason in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("rewards", "first"),
    [
        ([[0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0]], 1),
        ([[0.0] * 4, [1.0] * 4, [0.0] * 4], 1),
        ([[0.0] * 2] * 3, 1),
        ([[0.0] * 4] * 2, 1),
        ([[0.0] * 4] * 5, 2),
    ],
    ids=["one other", "an iteration of others", "too few to tell", "a short run", "a resumed run"],
)
def test_any_other_run_gets_none(rewards: list[list[float]], first: int) -> None:
    assert said(rewards, first=first) == []


def test_a_module_without_episodes_of_text_gets_none() -> None:
    watch = EqualRewards()
    assert [watch.line(None, iteration=iteration) for iteration in range(1, 6)] == [None] * 5
