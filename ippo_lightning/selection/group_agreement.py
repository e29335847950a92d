"""What is left of groups of demonstrations when their gradients are gone: scores, and how far the groups agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ippo_lightning.influence import Direction, add_weighted, halves_agreement


class GroupAgreement:
    """Compares groups whose gradients come a few at a time, so that not all of them have to be in memory.

    Args:
        score: called with gradients of groups and the number of all groups; returns scores [gradients, rows]. None if
            rows are scored along the groups elsewhere.
    """

    def __init__(self, score: Callable[[Sequence[Direction], int], Tensor] | None) -> None:
        self._score = score
        self._scores: list[Tensor] = []
        self._halves: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._count = 0
        self.seconds = 0.0
        """Spent here since the beginning."""

    def add(self, directions: Sequence[Direction], num_groups: int) -> None:
        """Take the next groups.

        Args:
            directions: their gradients, scaled as those of the scores; they are not kept.
            num_groups: number of all groups.
        """
        start = time.perf_counter()
        if self._score is not None:
            # before the halves are added, which are two more copies
            self._scores.append(self._score(directions, num_groups))
        for direction in directions:
            # groups are dealt out in turn, so every second one is a half that saw each part of the demonstrations
            half = self._count % 2
            add_weighted(self._halves[half], direction, 1.0 / ((num_groups + 1 - half) // 2))
            self._count += 1
        self.seconds += time.perf_counter() - start

    def scores(self) -> Tensor | None:
        """Return the scores of all groups, shape [groups, rows]; None if none were made."""
        return torch.cat(self._scores) if self._scores else None

    def halves_cosine(self) -> float | None:
        """Return the cosine of both halves' mean gradients, and free these; None without groups."""
        if not self._count:
            return None
        start = time.perf_counter()
        cosine = halves_agreement(*self._halves)
        self._halves = ({}, {})
        self.seconds += time.perf_counter() - start
        return cosine
