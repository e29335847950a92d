"""Figures of a trace: the probability, the roughness and the positive records over iterations, and the top records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from ippo_lightning.analysis.grid_map import GridMap
from ippo_lightning.analysis.map_figures import ArrowMap, MapArrow, draw_arrow_maps
from ippo_lightning.analysis.pages import FROM_ZERO
from ippo_lightning.analysis.phases import PHASES
from ippo_lightning.analysis.traced_rounds import Trace, TracedRound
from ippo_lightning.records import ControlEpisodes
from ippo_lightning.report.canvas import MUTED, canvas, iteration_axis
from ippo_lightning.report.display import plain

_PROBABILITY, _ROUGHNESS, _POSITIVE = "#0072B2", "#D55E00", "#009E73"
_SHADES = dict(zip(PHASES, ("#eef1f4", "#fdf1d8", "#e4f1ea"), strict=True))
"""Backgrounds of the three parts."""
_CURVES_HEIGHT = 6.6
_SCORES = LinearSegmentedColormap.from_list("scores", ["#6d9cc2", "#06284f"])
"""Also the lightest is seen on white, and on black in the dark mode, which turns the colours round."""


def draw_curves(trace: Trace, path: Path, *, narrow: bool) -> str:
    """Draw what happened over the iterations, in three panels with one axis; return the figure in words.

    Args:
        trace: of a behaviour.
        path: the PNG file.
        narrow: for a phone.
    """
    iterations = [one.iteration for one in trace.rounds]
    ends = [*iterations, iterations[-1] + 1]
    with canvas(path, height=_CURVES_HEIGHT, rows=3, narrow=narrow) as axes:
        top, middle, bottom = (row[0] for row in axes)
        for panel in (top, middle, bottom):
            _shade(panel, trace, ends)
        top.plot(ends, trace.values, color=_PROBABILITY, marker="o", markersize=3.5)
        top.set_title(f"Behaviour: {trace.behaviour.measure}")
        if trace.behaviour.measure != "log density":
            top.set_ylim(-0.03, 1.03)
        _draw_roughness(middle, trace, narrow=narrow)
        counts = [len(one.positive) for one in trace.rounds]
        bottom.plot(iterations, counts, color=_POSITIVE, marker="o", markersize=3.5)
        bottom.set_title("Records with a positive score")
        bottom.set_ylim(0, 1.08 * max(*counts, 1))
        for panel in (top, middle, bottom):
            iteration_axis(panel, ends, most=6 if narrow else 10)
            panel.set_xlim(ends[0] - 0.4, ends[-1] + 0.4)
            panel.set_xlabel(f"iteration, {FROM_ZERO}" if panel is bottom else "")
        _name_phases(bottom, trace)
    return (
        f"Over iterations {iterations[0]} to {iterations[-1]}: {trace.behaviour.measure} from {plain(trace.values[0])} "
        f"to {plain(trace.values[-1])}; roughness of the scores beside that of shuffled scores; from "
        f"{counts[0]:,} to {counts[-1]:,} records with a positive score."
    )


def _draw_roughness(panel: Axes, trace: Trace, *, narrow: bool) -> None:
    panel.set_title("Roughness")
    found = [(one.iteration, one.roughness) for one in trace.rounds if one.roughness is not None]
    if not found:
        panel.text(0.02, 0.5, "too few positive records", color=MUTED, transform=panel.transAxes)
        return
    x = [iteration for iteration, _ in found]
    low, high = [one.low for _, one in found], [one.high for _, one in found]
    panel.fill_between(x, low, high, color=MUTED, alpha=0.28, linewidth=0, label="shuffled, 95 %")
    panel.plot(x, [one.mean for _, one in found], color=MUTED, linewidth=1.2, linestyle="--", label="shuffled, mean")
    panel.plot(x, [one.value for _, one in found], color=_ROUGHNESS, marker="o", markersize=3.5, label="scores")
    panel.set_ylim(bottom=0)
    if narrow:  # above the panel there is no room beside the title
        panel.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.16), borderaxespad=0,
                     columnspacing=1, handlelength=1.2, handletextpad=0.4)  # fmt: skip
    else:
        panel.legend(fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderaxespad=0)


def _shade(panel: Axes, trace: Trace, ends: Sequence[int]) -> None:
    for index, phase in enumerate(trace.phases.of_iteration):
        panel.axvspan(ends[index], ends[index + 1], color=_SHADES[phase], linewidth=0, zorder=0)


def _name_phases(panel: Axes, trace: Trace) -> None:
    """Name the backgrounds below all panels: inside a narrow part there is no room for its name."""
    marks = [
        Patch(facecolor=_SHADES[phase], edgecolor=MUTED, linewidth=0.5, label=phase)
        for phase in dict.fromkeys(trace.phases.of_iteration)
    ]
    if marks:
        panel.figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9.5)


def draw_maps(
    grid: GridMap, rounds: Sequence[TracedRound], behaviour: ControlEpisodes, path: Path, *, narrow: bool
) -> str:
    """Draw the top records of some iterations on the map of their environment; return the figure in words.

    Args:
        grid: the map.
        rounds: at least one.
        behaviour: one row, whose field has a frame.
        path: the PNG file.
        narrow: for a phone.
    """
    maps, words = [], []
    for one in rounds:
        shares = _shares(one)
        maps.append(ArrowMap(title=f"Iteration {one.iteration}", arrows=_map_arrows(grid, shares)))
        (state, action, is_positive), share = shares.most_common(1)[0]
        words.append(
            f"iteration {one.iteration}: {100 * share:.0f} % of their score is of action {action} in state "
            f"{state}, advantage {'above' if is_positive else 'below'} 0"
        )
    state = int(behaviour.observations[0, 0])
    draw_arrow_maps(grid, maps, path, word="advantage", narrow=narrow, framed=state, frame_word="the behaviour's field")
    return f"The top records on the map. {'; '.join(words)}."


def _map_arrows(grid: GridMap, shares: Counter[tuple[int, int, bool]]) -> list[MapArrow]:
    most = max(shares.values())
    return [
        MapArrow(
            field=divmod(state, grid.width),
            direction=grid.directions.get(action, (0.0, 0.0)),
            is_positive=is_positive,
            size=(share / most) ** 0.5,  # its thickness squared would exaggerate
            number=f"{100 * share:.0f}" if share >= _SMALLEST else "<1",
        )
        for (state, action, is_positive), share in shares.items()
    ]


_SMALLEST = 0.005
"""Is shown as 1 %."""


def _shares(one: TracedRound) -> Counter[tuple[int, int, bool]]:
    """Return each observation, action, and sign of the advantage (True above 0) with its share of the top scores."""
    rows = one.records
    assert isinstance(rows, ControlEpisodes), "of an environment"
    found: Counter[tuple[int, int, bool]] = Counter()
    columns = (rows.observations, rows.actions, rows.advantages > 0)
    keys = zip(*(column[:, 0].tolist() for column in columns), strict=True)
    scores = one.scores[one.top]
    for (state, action, is_positive), share in zip(keys, (scores / scores.sum()).tolist(), strict=True):
        found[int(state), int(action), is_positive] += share
    return found


def draw_clouds(rounds: Sequence[TracedRound], path: Path, *, narrow: bool) -> str:
    """Draw the positive records of some iterations by their embeddings, coloured by score; return it in words.

    Args:
        rounds: at least one.
        path: the PNG file.
        narrow: for a phone.
    """
    every = np.concatenate([one.places.numpy() for one in rounds])
    # Rows far out would press all others into one point.
    low, high = np.quantile(every, 0.01, axis=0), np.quantile(every, 0.99, axis=0)
    room = 0.12 * np.maximum(high - low, 1e-9)
    columns = 1 if narrow else min(2, len(rounds))
    rows = -(-len(rounds) // columns)
    with canvas(path, height=2.6 * rows + 0.6, rows=rows, columns=columns, narrow=narrow) as axes:
        panels = [panel for row in axes for panel in row]
        for panel, one in zip(panels, rounds, strict=False):
            scores = one.scores[one.positive]
            order = scores.argsort()
            # Of the largest score: the scale of the scores changes from iteration to iteration.
            relative = (scores / scores.max())[order].numpy()
            across, up = one.places[order].numpy().T
            points = panel.scatter(
                across, up, c=100 * relative, cmap=_SCORES, vmin=0, vmax=100, s=14 + 26 * relative, linewidths=0
            )
            panel.set_title(f"Iteration {one.iteration}")
            panel.set_xlim(low[0] - room[0], high[0] + room[0])
            panel.set_ylim(low[1] - room[1], high[1] + room[1])
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(visible=False)
        for panel in panels[len(rounds) :]:
            panel.set_axis_off()
        panels[0].figure.colorbar(
            points, ax=panels, location="bottom", label="score, % of the highest of its iteration",
            shrink=0.9 if narrow else 0.6, aspect=30,
        )  # fmt: skip
    return f"Positive records of iterations {', '.join(str(one.iteration) for one in rounds)}, by their embeddings."
