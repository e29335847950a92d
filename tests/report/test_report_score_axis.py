"""Axes of scores: linear if that shows everything, else logarithmic on both sides of zero."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from ippo_lightning.report.score_axis import draw_powers, even_edges, linear_range, range_of_scales


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.0, 0.0], None),
        ([1.0, -2.0, 3.0], None),
        # The 10 % quantile of 1, 2, 3 and 5000 is 1.3, and the largest is over 100 times the median of 2.5.
        ([1.0, -2.0, 3.0, -5000.0], 1.0),
        # One tiny value does not stretch the axis: at most seven powers of ten below the largest.
        ([1e-30, 1e-30, 1e-30, 1000.0], 1e-4),
    ],
)
def test_an_axis_becomes_logarithmic_only_if_sizes_differ(values, expected):
    assert linear_range(values) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("scales", "expected"), [([], None), ([0.0, 5.0], None), ([1.0, 30.0], None), ([0.05, 7.0, 80.0], 0.01)]
)
def test_iterations_of_different_scale_make_an_axis_logarithmic(scales, expected):
    assert range_of_scales(scales) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("low", "high"), [(-130.0, 4200.0), (0.0, 50.0), (-1e6, 0.0)])
def test_bars_cover_all_scores_and_meet_at_zero(low, high):
    edges = even_edges(low, high, bins=40, linear=0.01)
    assert 0.0 in edges
    assert edges[0] <= low
    assert edges[-1] >= high * (1 - 1e-9)
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize(("which", "most"), [("x", 6), ("y", 8)])
@pytest.mark.parametrize(("low", "high"), [(-250.0, 4200.0), (-1e-3, 1e9), (0.0, 3.0)])
def test_ticks_are_few_powers_of_ten_and_zero(low, high, which, most):
    panel = Figure().subplots()
    panel.plot([low, high], [low, high])
    draw_powers(panel, which, 1e-3)
    ticks = list(getattr(panel, f"get_{which}ticks")())
    assert 0.0 in ticks
    assert 2 <= len(ticks) <= most
    powers = np.log10([abs(tick) for tick in ticks if tick])
    assert powers == pytest.approx(np.round(powers))
    assert getattr(panel, f"get_{which}scale")() == "symlog"
