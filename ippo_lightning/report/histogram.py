"""The distribution of influence scores, early and late in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ippo_lightning.report.canvas import (
    DROPPED_STRENGTH,
    INK,
    canvas,
    method_colours,
    percent_formatter,
    wrapped,
)
from ippo_lightning.report.display import percent
from ippo_lightning.report.records import Comparison, EpisodeRow
from ippo_lightning.report.score_axis import draw_powers, even_edges, linear_range, score_label

_MOST_METHODS = 4
_BINS = 40
_TITLE_WIDTH = 18
"""Characters of a line above a panel: two panels share the width, and behind the right one stand the names."""


def plot_score_histogram(comparison: Comparison, path: Path) -> str | None:
    """Draw the scores of the first and the last third of the iterations, kept and dropped episodes by colour.

    Args:
        comparison: from `read_comparison`.
        path: the PNG file to write.

    Returns:
        The figure in words, for the alternative text; None if no episode has a score and a weight.
    """
    scored = [
        (method, episodes)
        for method in comparison.methods.values()
        if (episodes := [e for e in method.episodes if e.score is not None and e.kept is not None])
    ]
    scored = scored[:_MOST_METHODS]
    if not scored:
        return None
    words: list[str] = []
    colours = method_colours(comparison)
    with canvas(path, height=1.3 + 2.1 * len(scored), rows=len(scored), columns=2) as axes:
        for row, (method, episodes) in zip(axes, scored, strict=True):
            scores = [episode.score or 0.0 for episode in episodes]
            linear = linear_range(scores)
            edges = _edges(scores) if linear is None else _power_edges(scores, linear)
            for panel, part, members in zip(row, ("early", "late"), _thirds(episodes), strict=True):
                _draw(panel, members, edges, linear, colour=colours[method.name])
                panel.set_title(f"{wrapped(method.title, width=_TITLE_WIDTH)}, {part}")
                words.append(f"{method.title}, {part}: {percent(_dropped_fraction(members), digits=0)} % dropped.")
            # One scale for both parts, so that their bars can be compared, and with room for the higher ones.
            row[0].set_ylim(0, max(panel.get_ylim()[1] for panel in row))
            row[1].sharey(row[0])
            row[1].tick_params(labelleft=False)
        for panel in axes[-1]:
            panel.set_xlabel(score_label(panel.get_xscale()))
        _name_colours(axes[0][0])
    return f"Histograms of influence scores, first and last third of training. {' '.join(words)}"


def _thirds(episodes: Sequence[EpisodeRow]) -> tuple[list[EpisodeRow], list[EpisodeRow]]:
    iterations = sorted({episode.iteration for episode in episodes})
    # At least one iteration: `iterations[-0:]` would be all of them.
    third = max(1, len(iterations) // 3)
    first, last = set(iterations[:third]), set(iterations[-third:])
    return [e for e in episodes if e.iteration in first], [e for e in episodes if e.iteration in last]


def _edges(scores: Sequence[float]) -> np.ndarray:
    """Return the borders of the bars, from the 2 % to the 98 % quantile of the scores, with zero among them.

    The tails are long: bars that reach to the extremes would leave a single high bar in the middle.
    """
    low, high = np.quantile(scores, [0.02, 0.98])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if high - low <= 0:
        # Nearly all scores are 0: with a width of 0, the lines below would divide by zero.
        low, high = -1.0, 1.0
    width = (high - low) / _BINS
    # The rule drops at zero. A bar across zero would mix kept and dropped episodes.
    below, above = int(np.ceil(-low / width)), int(np.ceil(high / width))
    return width * np.arange(-max(below, 1), max(above, 1) + 1)


def _power_edges(scores: Sequence[float], linear: float) -> np.ndarray:
    return even_edges(min([*scores, 0.0]), max([*scores, 0.0]), bins=_BINS, linear=linear)


def _draw(panel: Axes, episodes: Sequence[EpisodeRow], edges: np.ndarray, linear: float | None, *, colour: str) -> None:
    # What lies beyond the outermost borders counts in the outermost bars, so that all fractions add up to one.
    kept = np.clip([e.score or 0.0 for e in episodes if e.kept], edges[0], edges[-1])
    dropped = np.clip([e.score or 0.0 for e in episodes if not e.kept], edges[0], edges[-1])
    # Divided by kept and dropped together: both colours of a panel add up to one.
    weights = [np.full(len(part), 1 / max(1, len(episodes))) for part in (kept, dropped)]
    panel.hist(
        [kept, dropped],
        bins=list(edges),
        weights=weights,
        stacked=True,
        color=[colour, to_rgba(colour, DROPPED_STRENGTH)],
    )
    panel.axvline(0, color=INK, linewidth=0.9)
    if linear is None:
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    else:
        # The limits first: ticks are chosen within them, and both panels of a row must have the same.
        panel.set_xlim(edges[0], edges[-1])
        draw_powers(panel, "x", linear)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(percent_formatter())


def _name_colours(panel: Axes) -> None:
    # Once for all panels: what differs is the strength of a colour, and the colour is that of the method. Below the
    # panels, where no bar is.
    swatches = [Patch(color=INK), Patch(color=to_rgba(INK, DROPPED_STRENGTH))]
    panel.figure.legend(
        swatches, ["kept", "dropped"], loc="outside lower center", ncols=2, fontsize=9.5, handlelength=1
    )


def _dropped_fraction(episodes: Sequence[EpisodeRow]) -> float | None:
    return sum(not episode.kept for episode in episodes) / len(episodes) if episodes else None
