"""Where the probability of a behaviour rises, and whether the roughness of its scores differs before, while and after.

The rule is ours: the paper shows three phases without a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from scipy import stats

Phase = Literal["before", "rising", "settled"]
PHASES: tuple[Phase, ...] = ("before", "rising", "settled")
FEWEST_RISE = 0.1
"""Of the probability, or nats of a density."""
START, END = 0.1, 0.9
"""Fractions of the rise."""
FEWEST_ITERATIONS = 3
"""Of a phase, for a comparison with its neighbour."""
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Three parts of a curve that rises, and what the roughness says about them."""

    of_iteration: tuple[Phase, ...]
    """Of each traced iteration, in its order; empty if the curve does not rise."""
    medians: tuple[float | None, float | None, float | None]
    """Of the relative roughness in the three parts."""
    p_values: tuple[float | None, float | None]
    """Of the comparison of the second part with the first, and with the third; None of too few iterations."""

    @property
    def rises(self) -> bool:
        """Whether the behaviour became more probable."""
        return bool(self.of_iteration)

    @property
    def are_seen(self) -> bool:
        """Whether the roughness of the second part differs from those of both others."""
        return all(p is not None and p < LEVEL for p in self.p_values)


def find_phases(values: Sequence[float], roughness: Sequence[float | None]) -> Phases:
    """Divide iterations by the rise of a probability, and compare the relative roughness of the parts.

    `rising` goes from the iteration that takes the value over 10 % of its rise for good, to the one that takes it over
    90 % for good. The comparisons are two-sided Mann-Whitney tests.

    Args:
        values: the probability at the beginning of each traced iteration, and behind the last one: one more than
            iterations.
        roughness: of each traced iteration, relative to that of shuffled scores; None where there is none.
    """
    first, last = values[0], values[-1]
    if last - first < FEWEST_RISE:
        return Phases(of_iteration=(), medians=(None, None, None), p_values=(None, None))
    below = [index for index, value in enumerate(values) if value < first + START * (last - first)]
    low = [index for index, value in enumerate(values) if value < first + END * (last - first)]
    # The update of an iteration leads from its value to the next one.
    begin, end = below[-1], low[-1]
    names: tuple[Phase, ...] = tuple(
        "before" if index < begin else "rising" if index <= end else "settled" for index in range(len(roughness))
    )
    parts = [
        [value for value, name in zip(roughness, names, strict=True) if name == phase and value is not None]
        for phase in PHASES
    ]
    before, rising, settled = (median(part) if part else None for part in parts)
    return Phases(
        of_iteration=names,
        medians=(before, rising, settled),
        p_values=(_p_value(parts[1], parts[0]), _p_value(parts[1], parts[2])),
    )


def _p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    if min(len(one), len(other)) < FEWEST_ITERATIONS:
        return None
    return float(stats.mannwhitneyu(one, other, alternative="two-sided").pvalue)
