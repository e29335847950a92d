"""Axes of scores: linear if that shows everything, else logarithmic on both sides of zero."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
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


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-250.0, 4200.0), (-1e-3, 1e9), (-5000.0, -90.0), (-4e-5, 3e-5), (0.2, 11.0), (5.1, 7.9), (-1e-9, 0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("linear", [1e-7, 1.0])
def test_an_axis_has_enough_ticks_and_their_labels_do_not_touch(low, high, which, linear):
    # As wide and as high as the narrowest panel of a report.
    figure = Figure(figsize=(2.7, 2.6))
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    getattr(panel, f"set_{which}lim")(low, high)
    draw_powers(panel, which, linear)
    assert getattr(panel, f"get_{which}scale")() == "symlog"
    figure.draw_without_rendering()
    axis = getattr(panel, f"{which}axis")
    low, high = axis.get_view_interval()
    labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(labels) >= 3
    assert (0.0 in axis.get_majorticklocs()) == (low <= 0 <= high)
    boxes = [label.get_window_extent() for label in labels]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
