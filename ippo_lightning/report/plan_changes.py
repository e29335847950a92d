"""Who changed the plan of the update: how many episodes each callback dropped, and how it scaled the others."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from ippo_lightning.report.records import Method

_MOST_REASONS = 12
"""Rows of the table; a project that builds its reasons from numbers could have thousands."""


@dataclass(frozen=True)
class PlanChangeSummary:
    """What one reason did to the recorded episodes."""

    dropped: float
    """Fraction of the episodes that it dropped, in [0, 1]."""
    scaled: float
    """Fraction of the episodes whose weight it changed without dropping them, in [0, 1]."""
    mean_factor: float | None
    """Mean factor over the scaled episodes; None if it scaled none."""


def plan_changes(method: Method) -> dict[str, PlanChangeSummary]:
    """Summarise, by reason, the changes of the weights.

    Several reasons may drop the same episode, so the fractions may add up to more than the dropped fraction.

    Args:
        method: all its finished runs count together.

    Returns:
        Reason to summary, the reason that dropped most first; empty if no run recorded a change.
    """
    # Episodes of a run that recorded no changes would make every fraction smaller.
    episodes = [episode for episode in method.episodes if episode.changes is not None]
    factors: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        # A callback may change an episode twice, for example drop and scale it. It still counts as one episode.
        combined: dict[str, float] = {}
        for reason, factor in episode.changes or ():
            combined[reason] = combined.get(reason, 1.0) * factor
        for reason, factor in combined.items():
            factors[reason].append(factor)
    found = {reason: _summary(changed, num_episodes=len(episodes)) for reason, changed in factors.items()}
    ranked = sorted(found.items(), key=lambda item: (-item[1].dropped, -item[1].scaled, item[0]))
    return dict(ranked[:_MOST_REASONS])


def _summary(factors: list[float], *, num_episodes: int) -> PlanChangeSummary:
    scaled = [factor for factor in factors if factor != 0]
    return PlanChangeSummary(
        dropped=(len(factors) - len(scaled)) / num_episodes,
        scaled=len(scaled) / num_episodes,
        mean_factor=fmean(scaled) if scaled else None,
    )
