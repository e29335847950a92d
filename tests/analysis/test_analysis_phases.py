"""Iterations are divided by the rise of the behaviour, and phases are seen only where the roughness differs."""

from __future__ import annotations

import pytest
from scipy import stats

from ippo_lightning.analysis.phases import Phase, find_phases

B: Phase = "before"
R: Phase = "rising"
S: Phase = "settled"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.2, 0.5, 0.8, 1.0, 1.0], (B, R, R, R, S)),
        ([0.2, 1.0, 1.0, 1.0], (R, S, S)),
        ([0.2, 0.2, 0.2, 1.0], (B, B, R)),
        # A rise that is lost again does not count.
        ([0.2, 0.9, 0.2, 0.6, 1.0, 1.0], (B, B, R, R, S)),
        ([0.2, 1.0, 0.5, 1.0, 1.0], (R, R, R, S)),
        ([0.5, 0.5, 0.5], ()),
        ([0.9, 0.5, 0.2], ()),
        ([0.2, 0.9, 0.29], ()),
        ([0.1, 0.2], (R,)),
    ],
    ids=["three", "at once", "at the end", "lost again", "a dip", "flat", "falling", "back again", "one iteration"],
)
def test_iterations_are_divided_by_the_rise(values: list[float], expected: tuple[Phase, ...]) -> None:
    assert find_phases(values, [None] * (len(values) - 1)).of_iteration == expected


RISE = [0.2] * 4 + [0.4, 0.5, 0.6, 0.7] + [1.0] * 5


@pytest.mark.parametrize(
    ("before", "rising", "settled", "are_seen"),
    [
        ([0.9, 0.8, 0.85], [0.3, 0.2, 0.1, 0.25, 0.2], [0.8, 0.9, 0.7, 0.6], True),
        ([0.9, 0.8, 0.85], [0.3, 0.2, 0.1, 0.25, 0.2], [0.2, 0.3, 0.1, 0.15], False),
        ([0.9, 0.1, 0.5], [0.3, 0.2, 0.8, 0.7, 0.2], [0.8, 0.3, 0.7, 0.1], False),
    ],
    ids=["falls and rises", "falls", "without order"],
)
def test_phases_are_seen_where_the_roughness_differs_twice(
    before: list[float], rising: list[float], settled: list[float], are_seen: bool
) -> None:
    found = find_phases(RISE, [*before, *rising, *settled])
    assert found.of_iteration == (B,) * 3 + (R,) * 5 + (S,) * 4
    assert found.are_seen is are_seen
    assert found.medians[1] == sorted(rising)[2]
    expected = [stats.mannwhitneyu(rising, other).pvalue for other in (before, settled)]
    assert found.p_values == pytest.approx(expected)


def test_two_iterations_are_too_few_to_compare() -> None:
    found = find_phases(RISE, [0.9, None, 0.8, 0.3, 0.2, 0.1, 0.25, 0.2, 0.8, 0.9, 0.7, 0.6])
    assert found.p_values[0] is None
    assert found.p_values[1] is not None
    assert not found.are_seen
