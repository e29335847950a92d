"""Scores that come pass by pass: how they are made, joined, and what a pass without a finite score tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ippo_lightning.influence import EpisodeScores


class ScoresOfPasses(Protocol):
    """Scores the rows of passes."""

    def __call__(self, chosen: Sequence[Tensor], /, *, checksum_batches: int) -> EpisodeScores:
        """Return scores [directions, rows] in the order of the passes."""


class LostRowsError(Exception):
    """Some rows have no finite score.

    Args:
        rows: their numbers, on the CPU.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows


def joined(results: Sequence[EpisodeScores]) -> EpisodeScores:
    """Join the scores of passes.

    Args:
        results: of each pass, at least one.

    Returns:
        Scores [directions, rows of all passes] and their parts; a part that a pass lacks is 0 there.
    """
    if len(results) == 1:
        return results[0]
    names = {name: None for result in results for name in result.by_parameter}
    parts = {
        name: torch.cat([result.by_parameter.get(name, torch.zeros_like(result.scores)) for result in results], dim=1)
        for name in names
    }
    return EpisodeScores(torch.cat([result.scores for result in results], dim=1), parts)
