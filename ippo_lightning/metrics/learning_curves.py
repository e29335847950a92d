"""How much sooner one learning curve reaches what another reaches: in rounds, and in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ippo_lightning.errors import UserError


class Efficiency(NamedTuple):
    """Reductions, 1 - needed / needed by the baseline; 0.3 is 30 % less, and a negative one is more."""

    se_ave: float
    """Of rounds, the mean over the levels that the baseline reached."""
    se_peak: float
    """Of rounds, at the highest return of the baseline."""
    rt_peak: float
    """Of seconds, at the highest return of the baseline."""
    never_reached: float
    """The fraction of the levels that the curve does not reach; they are left out of `se_ave`."""


def first_round(returns: Sequence[float], level: float) -> int | None:
    """Return m(v), the first round with at least a level, counted from 1; None if there is none.

    Args:
        returns: after each round.
        level: v, in units of the returns.
    """
    return next((number for number, value in enumerate(returns, start=1) if value >= level), None)


def efficiency(
    returns: Sequence[float],
    baseline: Sequence[float],
    *,
    seconds: Sequence[float],
    baseline_seconds: Sequence[float],
) -> Efficiency:
    """Compare a learning curve with that of a baseline.

    reduction(v) = 1 - m(v) / m_baseline(v), for the levels v at which the baseline rises above all its earlier rounds.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), SE_ave, SE_peak and RT_peak.

    Args:
        returns: after each round.
        baseline: likewise, of plain PPO.
        seconds: that each round of `returns` took.
        baseline_seconds: likewise, of the baseline.

    Returns:
        NaN for what the curve does not reach.

    Raises:
        UserError: a curve without a round, another number of seconds than of rounds, or a return that is NaN.
    """
    _check("returns", returns, seconds)
    _check("baseline", baseline, baseline_seconds)
    rising = [value for number, value in enumerate(baseline) if value > max(baseline[:number], default=-math.inf)]
    found = [(first_round(returns, level), first_round(baseline, level)) for level in rising]
    reductions = [1 - own / other for own, other in found if own is not None and other is not None]
    own, other = found[-1]
    assert other is not None, "a level of the baseline's own"
    reached = own is not None
    return Efficiency(
        se_ave=sum(reductions) / len(reductions) if reductions else math.nan,
        se_peak=reductions[-1] if reached else math.nan,
        rt_peak=1 - sum(seconds[:own]) / sum(baseline_seconds[:other]) if reached else math.nan,
        never_reached=1 - len(reductions) / len(found),
    )


def _check(name: str, returns: Sequence[float], seconds: Sequence[float]) -> None:
    if not returns or len(returns) != len(seconds):
        raise UserError(f"{name}: {len(returns)} rounds and {len(seconds)} seconds; expected as many, at least one")
    if any(math.isnan(value) for value in returns):
        raise UserError(f"{name}: round {[math.isnan(value) for value in returns].index(True) + 1} is NaN")
