"""Which episodes the selection prefers and which it drops: the extreme scores, and the labels on each side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ippo_lightning.report.records import EpisodeRow, Method

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
_MOST_LABELS = 12
_OTHER = "other labels"
_NONE = "no label"


@dataclass(frozen=True)
class LabelTable:
    """The fraction of each label within groups of episodes."""

    groups: tuple[str, ...]
    """Names of the groups."""
    counts: tuple[int, ...]
    """Episodes in each group."""
    fractions: dict[str, tuple[float, ...]]
    """For each label its fraction in each group, in [0, 1]."""


def label_table(method: Method) -> LabelTable | None:
    """Count the labels among all, kept and dropped episodes, and among the tenths with the highest and lowest scores.

    Args:
        method: all its finished runs count together.

    Returns:
        The table without empty groups; None if no episode was dropped or none has a label.
    """
    # An episode without a recorded weight would count as dropped.
    episodes = [episode for episode in method.episodes if episode.kept is not None]
    # Without dropped episodes the groups would all be equal; without episodes `all` is True too.
    if all(episode.kept for episode in episodes) or not any(episode.label for episode in episodes):
        return None
    ranked = sorted((e for e in episodes if e.score is not None), key=_score)
    tenth = len(ranked) // 10
    groups: dict[str, Sequence[EpisodeRow]] = {
        "all": episodes,
        "kept": [episode for episode in episodes if episode.kept],
        "dropped": [episode for episode in episodes if not episode.kept],
        "top tenth": ranked[len(ranked) - tenth :],  # not ranked[-tenth:], which is everything if tenth is 0
        "bottom tenth": ranked[:tenth],
    }
    groups = {name: members for name, members in groups.items() if members}
    counted = {name: Counter(_label(episode) for episode in members) for name, members in groups.items()}
    return LabelTable(
        groups=tuple(groups),
        counts=tuple(len(members) for members in groups.values()),
        fractions=_fractions(counted, {name: len(members) for name, members in groups.items()}),
    )


def extremes(method: Method, *, most_positive: bool, count: int = NUM_EXTREMES) -> list[EpisodeRow]:
    """Return the episodes with the largest positive or negative scores, the most extreme first.

    Args:
        method: all its finished runs count together.
        most_positive: True for the largest positive scores, False for the largest negative ones.
        count: maximum number of episodes; a prompt with an equal response is shown once.

    Returns:
        Episodes of the wanted sign only; fewer than `count` if there are not enough.
    """
    sign = 1 if most_positive else -1
    wanted = [episode for episode in method.episodes if sign * _score(episode) > 0]
    # A policy repeats its favourite responses in every iteration; they would fill the whole table.
    shown: dict[tuple[str, str], EpisodeRow] = {}
    # Sorted first, so that of equal responses the one with the most extreme score is shown.
    for episode in sorted(wanted, key=_score, reverse=most_positive):
        shown.setdefault((episode.prompt, episode.response), episode)
        if len(shown) == count:
            break
    return list(shown.values())


def label_meanings(labels: Iterable[str]) -> dict[str, str]:
    """Return the meanings of the labels that have one, in the order of `LABELS`."""
    found = set(labels)
    return {label: meaning for label, meaning in LABELS.items() if label in found}


def _fractions(counted: dict[str, Counter[str]], totals: dict[str, int]) -> dict[str, tuple[float, ...]]:
    """Order the labels as `LABELS` does, then by frequency; put the rarest ones together into one row."""
    found = [label for label, _ in counted["all"].most_common()]
    # A fixed order of the known labels makes the tables of two methods comparable row by row.
    ordered = [label for label in LABELS if label in found] + [label for label in found if label not in LABELS]
    named, rest = ordered[:_MOST_LABELS], ordered[_MOST_LABELS:]
    rows = {label: tuple(counter[label] / totals[name] for name, counter in counted.items()) for label in named}
    if rest:
        rows[_OTHER] = tuple(sum(counter[label] for label in rest) / totals[name] for name, counter in counted.items())
    return rows


def _score(episode: EpisodeRow) -> float:
    # An episode without a score sorts into the middle and is at neither end.
    return 0.0 if episode.score is None else episode.score


def _label(episode: EpisodeRow) -> str:
    return episode.label or _NONE
