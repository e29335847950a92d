"""Rewards that are all equal in the first iterations get one line, worded for tasks where that is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import start_method
from small_episodes import make_episodes

from ippo_lightning.run.equal_rewards import EqualRewards


def said(rewards: Sequence[Sequence[float]], *, first: int = 1, **known: Any) -> list[str]:
    """The lines of a run with these rewards in its iterations."""
    watch = EqualRewards()
    lines = []
    for iteration, given in enumerate(rewards, first):
        episodes = make_episodes([1] * len(given), [1] * len(given)).evolve(outcome_rewards=torch.tensor(given))
        lines.append(watch.line(episodes, iteration=iteration, **known))
    return [line for line in lines if line is not None]


RARE, MANY, UNKNOWN = "Where right answers are rare", "Where the model is good at the task", "The usual reasons are a"


@pytest.mark.parametrize(
    ("value", "known", "reason"),
    [
        (0.0, {"is_grade": True}, RARE),
        (1.0, {"is_grade": True, "exact_match": 0.5}, MANY),
        (0.1, {"exact_match": 0.0}, RARE),
        (-0.5, {"exact_match": 0.95}, MANY),
        (0.1, {"exact_match": 0.5}, UNKNOWN),
        (0.0, {}, UNKNOWN),
        (1.0, {"exact_match": float("nan")}, UNKNOWN),
    ],
)
def test_equal_rewards_get_one_line_with_the_likely_reasons(value: float, known: dict[str, Any], reason: str) -> None:
    (line,) = said([[value] * 4] * 6, **known)
    assert line.startswith(f"ippo: warning: all 12 rewards of the first 3 iterations are {value:g}, ")
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
        ([[float("nan")] * 4] * 3, 1),
        ([[]] * 3, 1),
    ],
    ids=[
        "one other",
        "an iteration of others",
        "too few to tell",
        "a short run",
        "a resumed run",
        "nan",
        "none at all",
    ],
)
def test_any_other_run_gets_none(rewards: list[list[float]], first: int) -> None:
    assert said(rewards, first=first) == []


def test_a_module_without_episodes_of_text_gets_none() -> None:
    watch = EqualRewards()
    assert [watch.line(None, iteration=iteration) for iteration in range(1, 6)] == [None] * 5


# --- several ranks --------------------------------------------------------------------------------------------

RANKS = {
    "equal on each rank alone": [[0.0] * 4, [1.0] * 4],
    "equal on the first alone": [[0.0] * 4, [0.0, 1.0, 0.0, 1.0]],
    "equal on all": [[0.5] * 2, [0.5] * 4],
    "all on one rank": [[], [0.5] * 4],
}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: said([rewards[rank]] * 5) for name, rewards in RANKS.items()}
    counts = {name: line.split()[3] for name, lines in found.items() for line in lines}
    assert counts == {"equal on all": "18", "all on one rank": "12"}
    # a rank without episodes waits for none, and lets none wait
    watch = EqualRewards()
    episodes = make_episodes([1] * 4, [1] * 4).evolve(outcome_rewards=torch.zeros(4)) if rank == 0 else None
    lines = [watch.line(episodes, iteration=iteration) for iteration in range(1, 6)]
    assert [line is not None for line in lines] == [False, False, True, False, False]
    dist.destroy_process_group()


def test_the_rewards_of_all_ranks_decide(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method=start_method())
