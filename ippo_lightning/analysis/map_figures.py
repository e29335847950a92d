"""Records as arrows on the map of an environment, in the same look for all analyses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrow, Rectangle

from ippo_lightning.analysis.grid_map import GridMap
from ippo_lightning.report.canvas import FAINT, INK, MUTED, canvas

POSITIVE_COLOUR, NEGATIVE_COLOUR = "#009E73", "#7b5ea7"
_FIELD_COLOURS = {"H": "#c3ccd4", "C": "#c3ccd4", "G": "#f3e3b3"}
# All in fields: an arrow of any of the eight places of a field covers no other one and no number.
_SIDE = 0.085
"""How far both signs lie from the middle of the field, on its two sides."""
_START, _TIP = 0.13, 0.31
_BEYOND, _OVER, _BESIDE = 0.33, 0.09, 0.32
"""A number stands beyond the tip of an arrow that goes up or down, and over or under one that goes to a side."""
_INWARD = 0.04
"""How far the number of one sign reaches towards that of the other."""
_CROSS = "\N{MULTIPLICATION X}"
_THINNEST, _THICKEST = 0.02, 0.08
_HEAD_WIDTH, _HEAD_LENGTH = (0.08, 0.165), (0.08, 0.13)
_MOST_BESIDE = 5
"""Columns of a map that still fits twice beside each other."""
_INCHES = {False: 5.9, True: 3.7}
"""Of a row of maps, by whether it is narrow."""
_POINTS, _LETTER = 72, 0.125


@dataclass(frozen=True, kw_only=True)
class MapArrow:
    """Records with one observation, one action and one sign of their advantage."""

    field: tuple[int, int]
    """Row and column."""
    direction: tuple[float, float]
    """Rows down and columns right, of length 1; (0, 0) of an action that does not move."""
    is_positive: bool
    size: float
    """In [0, 1], of the largest arrow of its map."""
    number: str
    """Beside the arrow."""
    is_wrong: bool = False
    """Marked with a cross behind its number, so that the arrow is seen."""


@dataclass(frozen=True, kw_only=True)
class ArrowMap:
    """One map of a figure."""

    title: str
    arrows: Sequence[MapArrow]


def draw_arrow_maps(
    grid: GridMap,
    maps: Sequence[ArrowMap],
    path: Path,
    *,
    word: str,
    narrow: bool,
    framed: int | None = None,
    frame_word: str = "",
) -> None:
    """Draw maps with arrows and one legend.

    Args:
        grid: the map.
        maps: at least one.
        path: of the PNG.
        word: what the colours are the sign of.
        narrow: for a phone.
        framed: number of a field with a frame; None for no frame.
        frame_word: what the frame means.
    """
    columns = 1 if narrow or grid.width > _MOST_BESIDE else min(2, len(maps))
    rows = -(-len(maps) // columns)
    field = _INCHES[narrow] / columns / grid.width
    height = rows * (field * len(grid.letters) + 0.45) + (0.9 if narrow else 0.5)
    with canvas(path, height=height, rows=rows, columns=columns, narrow=narrow) as axes:
        panels = [panel for row in axes for panel in row]
        for panel, one in zip(panels, maps, strict=False):
            _draw_fields(panel, grid, points=_POINTS * field, framed=framed)
            for arrow in one.arrows:
                _draw_arrow(panel, arrow, points=_POINTS * field)
            panel.set_title(one.title)
        for panel in panels[len(maps) :]:
            panel.set_axis_off()
        marks = _marks(maps, word=word, frame_word=frame_word if framed is not None else "")
        panels[0].figure.legend(
            handles=marks, loc="outside lower center", ncols=1 if narrow else len(marks), fontsize=9.5,
            handlelength=1.4, columnspacing=1.4,
        )  # fmt: skip


def _marks(maps: Sequence[ArrowMap], *, word: str, frame_word: str) -> list[Line2D]:
    marks = [
        Line2D([], [], color=POSITIVE_COLOUR, linewidth=3, label=f"{word} > 0"),
        Line2D([], [], color=NEGATIVE_COLOUR, linewidth=3, label=f"{word} < 0"),
    ]
    if any(arrow.is_wrong for one in maps for arrow in one.arrows):
        marks.append(
            Line2D(
                [],
                [],
                color=INK,
                marker="x",
                linestyle="none",
                markersize=7,
                markeredgewidth=1.8,
                label="most have the wrong sign",
            )
        )
    if frame_word:
        marks.append(
            Line2D(
                [], [], color=INK, linestyle="none", marker="s", markerfacecolor="none", markersize=10,
                markeredgewidth=1.6, label=frame_word,
            )
        )  # fmt: skip
    return marks


def _draw_fields(panel: Axes, grid: GridMap, *, points: float, framed: int | None) -> None:
    size = min(9.0, _LETTER * points)
    for row, letters in enumerate(grid.letters):
        for column, letter in enumerate(letters):
            colour = _FIELD_COLOURS.get(letter, "white")
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=FAINT, zorder=0))
            panel.text(column - 0.45, row - 0.45, letter, fontsize=size, color=MUTED, ha="left", va="top", zorder=1)
    if framed is not None:
        row, column = divmod(framed, grid.width)
        panel.add_patch(
            Rectangle((column - 0.49, row - 0.49), 0.98, 0.98, fill=False, edgecolor=INK, linewidth=1.6, zorder=2)
        )
    panel.set_xlim(-0.52, grid.width - 0.48)
    panel.set_ylim(len(grid.letters) - 0.48, -0.52)
    panel.set_aspect("equal")
    panel.set_axis_off()


def _draw_arrow(panel: Axes, arrow: MapArrow, *, points: float) -> None:
    (row, column), (down, right) = arrow.field, arrow.direction
    colour = POSITIVE_COLOUR if arrow.is_positive else NEGATIVE_COLOUR
    aside = _SIDE if arrow.is_positive else -_SIDE
    if (down, right) == (0, 0):
        panel.add_patch(
            Circle((column + aside, row + 0.1), 0.03 + 0.06 * arrow.size, facecolor=colour, edgecolor="none", zorder=3)
        )
    else:
        x, y = column + aside * down + _START * right, row - aside * right + _START * down
        length = _TIP - _START
        panel.add_patch(
            FancyArrow(
                x, y, length * right, length * down, length_includes_head=True, color=colour, linewidth=0, zorder=3,
                width=_between(_THINNEST, _THICKEST, arrow.size), head_width=_between(*_HEAD_WIDTH, arrow.size),
                head_length=_between(*_HEAD_LENGTH, arrow.size),
            )
        )  # fmt: skip
    _write_number(panel, arrow, aside=aside, size=min(9.0, _LETTER * points))


def _write_number(panel: Axes, arrow: MapArrow, *, aside: float, size: float) -> None:
    (row, column), (down, right) = arrow.field, arrow.direction
    if abs(right) > abs(down):
        outward = -aside * right  # over the arrow or under it
        place = (column + _BESIDE * right, row + outward + (_OVER if outward > 0 else -_OVER))
        across, up = "center", "top" if outward > 0 else "bottom"
    else:
        outward = aside * (down or 1.0)
        place = (column + outward - (_INWARD if outward > 0 else -_INWARD), row + _BEYOND * (down or 0.6))
        across, up = "left" if outward > 0 else "right", "bottom" if down < 0 else "top"
    number = f"{arrow.number}{_CROSS}" if arrow.is_wrong else arrow.number
    panel.text(*place, number, fontsize=size, color=INK, zorder=5, ha=across, va=up)


def _between(low: float, high: float, size: float) -> float:
    return low + (high - low) * size
