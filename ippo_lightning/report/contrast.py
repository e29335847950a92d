"""Which of the labels and signs an update kept more of: is any difference larger than chance makes it?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from ippo_lightning.report.display import percent, points
from ippo_lightning.report.records import EpisodeRow

_FEWEST = 10
"""Prompts, and iterations, of a group that a sentence names; the error of fewer is too uncertain itself."""
_LEVEL = 0.95
_ROUNDING = 1e-9
NONE_SHOWN = "No difference between labels or signs is shown"

Unit = Callable[[EpisodeRow], object]
_UNITS: tuple[Unit, ...] = (
    lambda episode: episode.prompt_key or episode.prompt or id(episode),
    lambda episode: episode.iteration,
)
"""What an update decides on as a whole: the responses to one prompt, and the episodes along its one direction."""


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

    The interval is that of a difference of two ratios whose errors have two kinds of units, prompts and iterations: an
    update keeps or drops the responses to one prompt together, and its direction is common to all its episodes. The
    variance is the two-way one of Cameron, Gelbach and Miller (2011), or that of one kind if it is larger. One kept and
    one dropped unit are added to each group (Agresti and Caffo 2000), so that a group of which all or nothing was kept
    is not taken for certain. The level is that of all pairs of groups together (Bonferroni): the pair is chosen because
    it differs most.

    Args:
        groups: by title; each episode has a recorded weight.

    Returns:
        The comparison; None without two groups of at least 10 prompts and 10 iterations. Units that differ in size
        count for fewer.
    """
    found = [_kept(title, members) for title, members in groups.items() if members]
    large = [group for group in found if group.units >= _FEWEST - _ROUNDING]
    pairs = [sorted(pair, key=lambda group: group.adjusted) for pair in combinations(large, 2)]
    contrasts = [_contrast(more, less, num_pairs=len(pairs)) for less, more in pairs]
    return max(contrasts, key=lambda contrast: contrast.interval[0], default=None)


def contrast_words(contrast: Contrast | None) -> list[str]:
    """Return the comparison in sentences; without a difference beyond chance, that none is shown.

    Args:
        contrast: from `kept_contrast`.
    """
    if contrast is None:
        return [f"{NONE_SHOWN}: that takes two groups of at least {_FEWEST} prompts and {_FEWEST} iterations."]
    if not contrast.is_shown:
        return [f"{NONE_SHOWN}: none is larger than chance makes it."]
    more, less = (
        f"{percent(group.kept)} % of “{group.title}” (n = {group.count:,})" for group in (contrast.more, contrast.less)
    )
    low, high = (points(min(1.0, bound)) for bound in contrast.interval)
    return [
        f"The surest difference between labels or signs: the update used {more} and {less}. The 95 % interval of this "
        f"difference is {low} to {high} points; it allows for the choice among all pairs."
    ]


@dataclass(frozen=True)
class _Kept:
    group: KeptGroup
    members: Sequence[EpisodeRow]
    units: float
    """Prompts or iterations, whichever are fewer, as many of equal size as tell as much."""
    adjusted: float
    """Fraction with the added units."""
    size: float
    """Episodes, with those of the added units."""

    def residuals(self, unit: Unit) -> dict[object, float]:
        """Return, by unit, what it adds to the error of the fraction: the linear part of a ratio."""
        found: dict[object, float] = defaultdict(float)
        for episode in self.members:
            found[unit(episode)] += (bool(episode.kept) - self.adjusted) / self.size
        return found

    @property
    def added(self) -> float:
        """The same of the added units, squared and summed up."""
        of_each = (self.size - len(self.members)) / 2 / self.size
        return of_each**2 * (self.adjusted**2 + (1 - self.adjusted) ** 2)


def _kept(title: str, members: Sequence[EpisodeRow]) -> _Kept:
    kept, count = sum(bool(episode.kept) for episode in members), len(members)
    # Kish's effective number: of ten prompts of which one has nearly all episodes, there is little more than one.
    units = min(count**2 / sum(n**2 for n in Counter(map(unit, members)).values()) for unit in _UNITS)
    added = count / units
    size = count + 2 * added
    return _Kept(KeptGroup(title, count, kept / count), members, units, (kept + added) / size, size)


def _contrast(more: _Kept, less: _Kept, *, num_pairs: int) -> Contrast:
    by_prompt, by_iteration = (_variance(more, less, unit) for unit in _UNITS)
    by_both = _variance(more, less, lambda episode: tuple(unit(episode) for unit in _UNITS))
    # The sum counts what is common to a prompt and an iteration twice. By chance it may be less than one of both.
    variance = max(by_prompt, by_iteration, by_prompt + by_iteration - by_both) + more.added + less.added
    # Of few units, the error itself is uncertain.
    degrees = min(more.units, less.units) - 1
    width = math.sqrt(variance) * float(stats.t.ppf(1 - (1 - _LEVEL) / (2 * num_pairs), df=degrees))
    center = more.adjusted - less.adjusted
    return Contrast(more.group, less.group, (center - width, center + width))


def _variance(more: _Kept, less: _Kept, unit: Unit) -> float:
    """Return the variance of the difference if only the episodes of one unit have errors in common."""
    mine, other = more.residuals(unit), less.residuals(unit)
    units = {*mine, *other}
    parts = [mine.get(one, 0.0) - other.get(one, 0.0) for one in units]
    return len(units) / (len(units) - 1) * math.fsum(part**2 for part in parts)
