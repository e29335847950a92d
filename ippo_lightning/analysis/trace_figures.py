"""Figures of a trace: the probability, the roughness and the positive records over iterations, and the top records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ippo_lightning.analysis.grid_map import GridMap
from ippo_lightning.analysis.phases import PHASES
from ippo_lightning.analysis.traced_rounds import Trace, TracedRound
from ippo_lightning.records import ControlEpisodes
from ippo_lightning.report.canvas import FAINT, INK, MUTED, canvas, iteration_axis
from ippo_lightning.report.display import plain

_PROBABILITY, _ROUGHNESS, _POSITIVE = "#0072B2", "#D55E00", "#009E73"
_TOWARDS, _AWAY = "#0072B2", "#D55E00"
"""Records of an advantage above 0, and below."""
_SHADES = dict(zip(PHASES, ("#eef1f4", "#fdf1d8", "#e4f1ea"), strict=True))
"""Backgrounds of the three parts."""
_CURVES_HEIGHT = 6.6
_LINE = 2.0


def draw_curves(trace: Trace, path: Path) -> str:
    """Draw what happened over the iterations, in three panels with one axis; return the figure in words.

    Args:
        trace: of a behaviour.
        path: the PNG file.
    """
    iterations = [one.iteration for one in trace.rounds]
    ends = [*iterations, iterations[-1] + 1]
    with canvas(path, height=_CURVES_HEIGHT, rows=3) as axes:
        top, middle, bottom = (row[0] for row in axes)
        for panel in (top, middle, bottom):
            _shade(panel, trace, ends)
        top.plot(ends, trace.values, color=_PROBABILITY, marker="o", markersize=3.5)
        top.set_title(f"Behaviour: {trace.behaviour.measure}")
        if trace.behaviour.measure != "log density":
            top.set_ylim(-0.03, 1.03)
        _name_phases(top, trace, ends)
        _draw_roughness(middle, trace)
        counts = [len(one.positive) for one in trace.rounds]
        bottom.plot(iterations, counts, color=_POSITIVE, marker="o", markersize=3.5)
        bottom.set_title("Records with a positive score")
        bottom.set_ylim(0, 1.08 * max(*counts, 1))
        for panel in (top, middle, bottom):
            iteration_axis(panel, ends, most=10)
            panel.set_xlim(ends[0] - 0.4, ends[-1] + 0.4)
            panel.set_xlabel("iteration" if panel is bottom else "")
    return (
        f"Over iterations {iterations[0]} to {iterations[-1]}: {trace.behaviour.measure} from {plain(trace.values[0])} "
        f"to {plain(trace.values[-1])}; roughness of the scores beside that of shuffled scores; from "
        f"{counts[0]:,} to {counts[-1]:,} records with a positive score."
    )


def _draw_roughness(panel: Axes, trace: Trace) -> None:
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
    panel.legend(fontsize=8.5, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderaxespad=0)


def _shade(panel: Axes, trace: Trace, ends: Sequence[int]) -> None:
    for index, phase in enumerate(trace.phases.of_iteration):
        panel.axvspan(ends[index], ends[index + 1], color=_SHADES[phase], linewidth=0, zorder=0)


def _name_phases(panel: Axes, trace: Trace, ends: Sequence[int]) -> None:
    names = trace.phases.of_iteration
    for phase in dict.fromkeys(names):
        own = [index for index, name in enumerate(names) if name == phase]
        centre = (ends[own[0]] + ends[own[-1] + 1]) / 2
        # In a narrow part the name would cover those of its neighbours.
        if (ends[own[-1] + 1] - ends[own[0]]) / (ends[-1] - ends[0]) > _NARROW:
            panel.text(centre, 0.05, phase, ha="center", va="bottom", fontsize=9, color=MUTED,
                       transform=panel.get_xaxis_transform())  # fmt: skip


_NARROW = 0.1


def draw_maps(grid: GridMap, rounds: Sequence[TracedRound], behaviour: ControlEpisodes, path: Path) -> str:
    """Draw the top records of some iterations on the map of their environment; return the figure in words.

    Args:
        grid: the map.
        rounds: at least one, side by side.
        behaviour: one row, whose field has a frame.
        path: the PNG file.
    """
    words = []
    rows, columns = len(grid.letters), grid.width
    height = 0.75 + 6.4 / len(rounds) * rows / columns
    with canvas(path, height=height, columns=len(rounds)) as axes:
        for panel, one in zip(axes[0], rounds, strict=True):
            shares = _shares(one)
            _draw_field(panel, grid, state=int(behaviour.observations[0, 0]))
            for key, share in shares.items():
                _draw_arrow(panel, grid, *key, strength=share / max(shares.values()))
            panel.set_title(f"Iteration {one.iteration}", fontsize=10)
            best = max(shares, key=shares.__getitem__)
            sign = "above" if best[2] else "below"
            words.append(
                f"iteration {one.iteration}: most of action {best[1]} in observation {best[0]}, advantage {sign} 0"
            )
    return f"The top records on the map. {'; '.join(words)}."


def _shares(one: TracedRound) -> Counter[tuple[int, int, bool]]:
    """Return the sum of the top scores of each observation, action, and sign of the advantage (True above 0)."""
    rows = one.records
    assert isinstance(rows, ControlEpisodes), "of an environment"
    found: Counter[tuple[int, int, bool]] = Counter()
    columns = (rows.observations, rows.actions, rows.advantages > 0)
    keys = zip(*(column[:, 0].tolist() for column in columns), strict=True)
    for (state, action, is_positive), score in zip(keys, one.scores[one.top].tolist(), strict=True):
        found[int(state), int(action), is_positive] += score
    return found


def _draw_field(panel: Axes, grid: GridMap, *, state: int) -> None:
    for row, letters in enumerate(grid.letters):
        for column, letter in enumerate(letters):
            face = FAINT if letter == "H" else "white"
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor=FAINT, linewidth=0.8))
            panel.text(column - 0.42, row - 0.3, letter, fontsize=6.5, color=MUTED)
    row, column = divmod(state, grid.width)
    panel.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.4))
    panel.set_xlim(-0.55, grid.width - 0.45)
    panel.set_ylim(len(grid.letters) - 0.45, -0.55)
    panel.set_aspect("equal")
    panel.axis("off")


def _draw_arrow(panel: Axes, grid: GridMap, state: int, action: int, is_positive: bool, *, strength: float) -> None:
    row, column = divmod(state, grid.width)
    down, right = grid.directions.get(action, (0.0, 0.0))
    # Nothing but a point for an action that does not move.
    panel.annotate(
        "",
        xy=(column + 0.42 * right, row + 0.42 * down),
        xytext=(column + 0.02 * right, row + 0.02 * down),
        arrowprops={
            "arrowstyle": "-|>", "color": _TOWARDS if is_positive else _AWAY, "alpha": 0.15 + 0.85 * strength,
            "linewidth": 0.8 + _LINE * strength, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6 + 5 * strength,
        },
    )  # fmt: skip


def draw_clouds(rounds: Sequence[TracedRound], path: Path) -> str:
    """Draw the positive records of some iterations by their embeddings, coloured by score; return it in words.

    Args:
        rounds: at least one, side by side.
        path: the PNG file.
    """
    every = np.concatenate([one.places.numpy() for one in rounds])
    # Rows far out would press all others into one point.
    low, high = np.quantile(every, 0.01, axis=0), np.quantile(every, 0.99, axis=0)
    room = 0.12 * np.maximum(high - low, 1e-9)
    with canvas(path, height=2.5, columns=len(rounds)) as axes:
        for panel, one in zip(axes[0], rounds, strict=True):
            scores = one.scores[one.positive]
            order = scores.argsort()
            # Of the largest score: the scale of the scores changes from iteration to iteration.
            across, up = one.places[order].numpy().T
            # The lightest blue would not be seen on white.
            panel.scatter(
                across, up, c=(scores / scores.max())[order].numpy(), cmap="Blues", vmin=-0.4, vmax=1, s=8, linewidths=0
            )
            panel.set_title(f"Iteration {one.iteration}", fontsize=10)
            panel.set_xlim(low[0] - room[0], high[0] + room[0])
            panel.set_ylim(low[1] - room[1], high[1] + room[1])
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(visible=False)
    return f"Positive records of iterations {', '.join(str(one.iteration) for one in rounds)}, by their embeddings."
