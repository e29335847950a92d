"""Arrows on a map: none covers another one, and no number lies on an arrow."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrow

from ippo_lightning.analysis.grid_map import GridMap
from ippo_lightning.analysis.map_figures import NEGATIVE_COLOUR, POSITIVE_COLOUR, ArrowMap, MapArrow, draw_arrow_maps
from ippo_lightning.analysis.map_figures import _draw_arrow as draw_arrow
from ippo_lightning.analysis.map_figures import _draw_fields as draw_fields

WAYS = [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)]
GRID = GridMap(letters=("SF", "HG"), directions=dict(enumerate(WAYS)))
INCHES = 0.75
"""Of a field, as two maps of 4 columns beside each other have them."""


def every_arrow() -> list[MapArrow]:
    """The largest arrows of all ways and both signs in one field, with numbers of two digits and their crosses."""
    return [
        MapArrow(field=(0, 0), direction=way, is_positive=sign, size=1.0, number="88", is_wrong=True)
        for way in WAYS
        for sign in (True, False)
    ]


@pytest.fixture
def panel() -> Any:
    figure = Figure(figsize=(2 * INCHES, 2 * INCHES), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_fields(axes, GRID, points=72 * INCHES, framed=None)
    return axes


def test_arrows_of_all_ways_and_signs_cover_neither_each_other_nor_a_number(panel: Any) -> None:
    for arrow in every_arrow():
        draw_arrow(panel, arrow, points=72 * INCHES)
    panel.figure.canvas.draw()
    arrows = [patch for patch in panel.patches if isinstance(patch, FancyArrow)]
    assert len(arrows) == 2 * len(WAYS)
    for one, other in combinations(arrows, 2):
        assert not one.get_path().intersects_path(other.get_path(), filled=True)
    assert not panel.lines, "a cross stands behind its number and not on the arrow"
    boxes = [text.get_window_extent() for text in panel.texts if text.get_text().startswith("88")]
    assert len(boxes) == len(arrows)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for box in boxes:
        inside = box.transformed(panel.transData.inverted())
        for one in arrows:
            assert not one.get_path().intersects_bbox(inside, filled=True)
        # in the own field
        assert min(inside.x0, inside.x1) > -0.5
        assert max(inside.x0, inside.x1) < 0.5
        assert min(inside.y0, inside.y1) > -0.5
        assert max(inside.y0, inside.y1) < 0.5


def test_the_sign_is_the_colour_and_an_action_that_stays_is_a_point(panel: Any) -> None:
    for sign, colour in ((True, POSITIVE_COLOUR), (False, NEGATIVE_COLOUR)):
        before = len(panel.patches)
        for way in ((0.0, 1.0), (0.0, 0.0)):
            draw_arrow(
                panel, MapArrow(field=(1, 0), direction=way, is_positive=sign, size=0.5, number="1"), points=54.0
            )
        assert [matched(patch) for patch in panel.patches[before:]] == [colour.lower(), colour.lower()]


def matched(patch: Any) -> str:
    return str(to_hex(patch.get_facecolor())).lower()


@pytest.mark.parametrize("narrow", [False, True])
def test_three_maps_are_one_file(tmp_path: Path, narrow: bool) -> None:
    maps = [ArrowMap(title=str(number), arrows=every_arrow()) for number in range(3)]
    draw_arrow_maps(GRID, maps, tmp_path / "maps.png", word="advantage", narrow=narrow, framed=3, frame_word="here")
    assert (tmp_path / "maps.png").stat().st_size > 0
