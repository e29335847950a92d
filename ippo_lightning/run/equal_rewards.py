"""A line for a run whose rewards are all equal at the beginning: they tell no good response from a bad one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import gather_rows
from ippo_lightning.records import TextEpisodes

FIRST_ITERATIONS = 3
"""After so many iterations the line is written, once."""
_FEWEST = 8  # rewards; fewer may be equal by chance
_MOST_OF_RARE, _FEWEST_OF_MANY = 0.1, 0.9  # fractions of right answers
_RARE = (
    "Where right answers are rare at the start, this is normal and passes. Else the usual reasons are a reward or "
    "answer_kind that does not read the form in which the model answers, max_new_tokens ({truncated:.0%} of the "
    "responses are cut off), or a model that needs SFT first"
)
_MANY = (
    "Where the model is good at the task already, this is normal. Else the usual reasons are a reward that does "
    "not look at the response, or problems that are too easy"
)
_UNKNOWN = (
    "The usual reasons are a reward that does not look at the response or does not read its form, max_new_tokens "
    "({truncated:.0%} of the responses are cut off), or problems that are all too easy or all too hard"
)


class EqualRewards:
    """Looks at the rewards of the first iterations of a run, on all ranks."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def line(
        self, episodes: object, *, iteration: int, is_grade: bool = False, exact_match: float | None = None
    ) -> str | None:
        """Return the line if it is due, else None; every rank must call this.

        Args:
            episodes: of the newest iteration on this rank; only those of texts are looked at, because in an environment
                equal rewards of each step are common.
            iteration: iterations done, this one included. A run that is resumed later gets no line.
            is_grade: whether a reward is 1.0 for a right answer and 0.0 for a wrong one.
            exact_match: fraction of right answers in the newest evaluation; None if it is not known.
        """
        if iteration > FIRST_ITERATIONS:
            return None
        if isinstance(episodes, TextEpisodes):
            self._found.append(_numbers(episodes))
        if iteration < FIRST_ITERATIONS:
            return None
        # By the number of the iteration alone, so that all ranks wait for each other, also one without episodes.
        lowest, highest, count, truncated, seen = _over_ranks(self._found)
        if seen < FIRST_ITERATIONS or count < _FEWEST or lowest != highest:
            return None
        reasons = _reasons(lowest if is_grade else exact_match).format(truncated=truncated / count)
        return (
            f"ippo: warning: all {count:g} rewards of the first {FIRST_ITERATIONS} iterations are {lowest:g}, so "
            f"they tell no good response from a bad one. {reasons}."
        )


def _numbers(episodes: TextEpisodes) -> Tensor:
    """Return the lowest and the highest reward, and how many there are and are cut off, float64, shape [4]."""
    rewards = episodes.outcome_rewards.detach().double().cpu()
    ends = [float(rewards.min()), float(rewards.max())] if len(rewards) else [math.inf, -math.inf]
    return torch.tensor([*ends, len(rewards), float(episodes.truncated.sum())], dtype=torch.float64)


def _over_ranks(found: list[Tensor]) -> tuple[float, float, float, float, int]:
    """Return those numbers over iterations and ranks, and the most iterations that a rank has seen."""
    nothing = torch.tensor([math.inf, -math.inf, 0.0, 0.0], dtype=torch.float64)
    mine = _together(torch.stack([nothing, *found]))
    rows, _ = gather_rows(torch.cat([mine, mine.new_tensor([len(found)])]).unsqueeze(0))
    lowest, highest, count, truncated = _together(rows[:, :4]).tolist()
    return lowest, highest, count, truncated, int(rows[:, 4].max())


def _together(rows: Tensor) -> Tensor:
    return torch.stack([rows[:, 0].min(), rows[:, 1].max(), rows[:, 2].sum(), rows[:, 3].sum()])


def _reasons(right: float | None) -> str:
    if right is not None and right <= _MOST_OF_RARE:
        return _RARE
    return _MANY if right is not None and right >= _FEWEST_OF_MANY else _UNKNOWN
