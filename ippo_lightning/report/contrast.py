"""Which of the labels and signs an update kept more of: is any difference larger than chance makes it?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from ippo_lightning.report.display import percent, points
from ippo_lightning.report.records import EpisodeRow

_FEWEST = 10
"""Episodes of a group that a sentence names; the fraction of fewer is chance."""
_LEVEL = 0.95


@dataclass(frozen=True)
class KeptGroup:
    """Episodes with something in common, and how many of them the update used."""

    title: str
    count: int
    kept: float
    """Fraction, in [0, 1]."""


@dataclass(frozen=True)
class Contrast:
    """Two groups, of which one was kept more."""

    more: KeptGroup
    less: KeptGroup
    interval: tuple[float, float]
    """Simultaneous 95 % interval of the difference of the kept fractions."""

    @property
    def is_shown(self) -> bool:
        """Whether the groups differ by more than chance."""
        return self.interval[0] > 0


def kept_contrast(groups: Mapping[str, Sequence[EpisodeRow]]) -> Contrast | None:
    """Return the two groups that surely differ most: those with the largest lower bound of their difference.

    The interval is that of a difference of two ratios with prompts as units, because an update keeps or drops the
    responses to one prompt together. One kept and one dropped episode are added to each group (Agresti and Caffo 2000),
    so that a group of which all or nothing was kept is not taken for certain. The level is that of all pairs of groups
    together (Bonferroni): the pair is chosen because it differs most.

    Args:
        groups: by title; each episode has a recorded weight.

    Returns:
        The comparison; None without two groups of at least 10 episodes.
    """
    large = [_kept(title, members) for title, members in groups.items() if len(members) >= _FEWEST]
    pairs = [sorted(pair, key=lambda group: group.adjusted) for pair in combinations(large, 2)]
    found = [_contrast(more, less, num_pairs=len(pairs)) for less, more in pairs]
    return max(found, key=lambda contrast: contrast.interval[0], default=None)


def contrast_words(contrast: Contrast) -> list[str]:
    """Return the comparison in sentences; without a difference beyond chance, that none is shown.

    Args:
        contrast: from `kept_contrast`.
    """
    if not contrast.is_shown:
        return ["No difference between labels or signs is shown: none is larger than chance makes it."]
    more, less = (
        f"{percent(group.kept)} % of {group.title} (n = {group.count:,})" for group in (contrast.more, contrast.less)
    )
    low, high = (points(min(1.0, bound)) for bound in contrast.interval)
    return [
        f"The surest difference between labels or signs: the update used {more} and {less}. The 95 % interval of this "
        f"difference is {low} to {high} points; it allows for the choice among all pairs."
    ]


@dataclass(frozen=True)
class _Kept:
    group: KeptGroup
    adjusted: float
    """Fraction with the added episodes."""
    residuals: Mapping[object, float]
    """By prompt, what it adds to the error of the fraction: the linear part of a ratio."""
    added: float
    """The same of the added episodes, squared and summed up; each is a prompt of its own."""


def _kept(title: str, members: Sequence[EpisodeRow]) -> _Kept:
    kept = sum(bool(episode.kept) for episode in members)
    size = len(members) + 2
    adjusted = (kept + 1) / size
    residuals: dict[object, float] = defaultdict(float)
    for episode in members:
        residuals[episode.prompt or id(episode)] += (bool(episode.kept) - adjusted) / size
    added = (adjusted**2 + (1 - adjusted) ** 2) / size**2
    return _Kept(KeptGroup(title, len(members), kept / len(members)), adjusted, residuals, added)


def _contrast(more: _Kept, less: _Kept, *, num_pairs: int) -> Contrast:
    prompts = {*more.residuals, *less.residuals}
    parts = [more.residuals.get(prompt, 0.0) - less.residuals.get(prompt, 0.0) for prompt in prompts]
    count = len(prompts) + 4  # with the added episodes
    error = math.sqrt(count / (count - 1) * (math.fsum(part**2 for part in parts) + more.added + less.added))
    # Of few prompts, the error itself is uncertain.
    width = error * float(stats.t.ppf(1 - (1 - _LEVEL) / (2 * num_pairs), df=max(len(prompts) - 1, 1)))
    center = more.adjusted - less.adjusted
    return Contrast(more.group, less.group, (center - width, center + width))
