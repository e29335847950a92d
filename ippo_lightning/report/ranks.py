"""Where each score stands within its iteration: the scores of two iterations may be on different scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import rankdata

from ippo_lightning.report.records import EpisodeRow, Method


@dataclass(frozen=True)
class RankedEpisode:
    """An episode with a score, and its place among the scored episodes of the same run and iteration."""

    episode: EpisodeRow
    seed: int | None
    """Of the run."""
    rank: int
    """1 is the highest score of the iteration; equal scores share the better rank."""
    rank_from_below: int
    """1 is the lowest score of the iteration; equal scores share the lower rank."""
    num_scored: int
    """Scored episodes of the iteration."""
    place: float
    """0 is the lowest and 1 the highest score of the iteration; equal scores share their mean, a lone one has 0.5."""
    relative: float
    """The score, divided by the mean absolute score of the iteration; 0 if all scores are 0."""


def ranked_episodes(method: Method) -> list[RankedEpisode]:
    """Rank the scored episodes of a method, each iteration of each run by itself.

    Args:
        method: all its finished runs count.

    Returns:
        Run by run, iteration by iteration, in the order of the records.
    """
    found: list[RankedEpisode] = []
    for run in method.finished:
        by_iteration: dict[int, list[EpisodeRow]] = defaultdict(list)
        for episode in run.episodes:
            if episode.score is not None:
                by_iteration[episode.iteration].append(episode)
        for _, members in sorted(by_iteration.items()):
            found += _ranked(members, seed=run.seed)
    return found


def _ranked(members: Sequence[EpisodeRow], *, seed: int | None) -> list[RankedEpisode]:
    scores = [episode.score or 0.0 for episode in members]
    # `min`: of two equal best scores, both have rank 1.
    ranks = rankdata([-score for score in scores], method="min").astype(int).tolist()
    ranks_from_below = rankdata(scores, method="min").astype(int).tolist()
    places = [(rank - 1) / (len(scores) - 1) if len(scores) > 1 else 0.5 for rank in rankdata(scores).tolist()]
    # Divided before they are added: the sum of huge scores would be infinite.
    scale = sum(abs(score) / len(scores) for score in scores)
    return [
        RankedEpisode(episode, seed, rank, below, len(scores), place, score / scale if scale > 0 else 0.0)
        for episode, rank, below, place, score in zip(members, ranks, ranks_from_below, places, scores, strict=True)
    ]
