"""The episodes that the selection prefers most and least, and what the grader's labels mean."""

from __future__ import annotations

from collections.abc import Iterable

from ippo_lightning.report.ranks import RankedEpisode, ranked_episodes
from ippo_lightning.report.records import Method

NUM_EXTREMES = 12
"""Episodes shown at each end."""
LABELS = {
    "faithful": "right answer, every step right",
    "false_positive": "right answer, but a step is wrong or missing",
    "shortcut": "right answer without any step",
    "nonsense": "right answer after steps that do not belong to the problem",
    "wrong_answer": "wrong answer or none",
}
"""Meanings of the labels of this library's graders. A label that is not listed here is shown without a meaning."""


def extremes(method: Method, *, most_positive: bool, count: int = NUM_EXTREMES) -> list[RankedEpisode]:
    """Return the episodes that stand highest or lowest within their iteration.

    First come the first ones of all iterations, then the second ones, and so on. Among those of one rank, the score
    that is largest relative to the mean absolute score of its iteration comes first. A bare score would not do: the
    scale of the scores may change a thousandfold within a run.

    Args:
        method: all its finished runs count together.
        most_positive: True for the highest scores above zero, False for the lowest ones below zero.
        count: maximum number of episodes; a prompt with an equal response is shown once.

    Returns:
        Episodes of the wanted sign only; fewer than `count` if there are not enough.
    """
    sign = 1 if most_positive else -1
    wanted = [one for one in ranked_episodes(method) if sign * (one.episode.score or 0.0) > 0]
    # A policy repeats its favourite responses in every iteration; they would fill the whole table.
    shown: dict[tuple[str, str], RankedEpisode] = {}
    for one in sorted(wanted, key=lambda one: (_rank(one, most_positive), -abs(one.relative))):
        shown.setdefault((one.episode.prompt, one.episode.response), one)
        if len(shown) == count:
            break
    return list(shown.values())


def label_meanings(labels: Iterable[str]) -> dict[str, str]:
    """Return the meanings of the labels that have one, in the order of `LABELS`."""
    found = set(labels)
    return {label: meaning for label, meaning in LABELS.items() if label in found}


def _rank(one: RankedEpisode, most_positive: bool) -> int:
    return one.rank if most_positive else one.rank_from_below
