"""All figures of a report, with their captions."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from ippo_lightning.report.curves import CURVES, PART_FIGURE, part_curves, plot_curve
from ippo_lightning.report.histogram import plot_score_histogram
from ippo_lightning.report.plots import plot_results, plot_score_quantiles, plot_time_parts, results_legend
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.rendering import Figure

_LOG = logging.getLogger(__name__)
_DRAWN: Mapping[str, tuple[Callable[[Comparison, Path], str | None], str]] = {
    "results": (
        plot_results,
        "Final test results.",
    ),
    "time_parts": (
        plot_time_parts,
        "Median over iterations and seeds. Influence: the time to score and select episodes. Rest: the time outside "
        "all measured stages.",
    ),
    "score_quantiles": (
        plot_score_quantiles,
        "Influence scores of each iteration. Line: median; bands: 25-75 % and 10-90 % quantiles; thin line: zero. "
        "Compare the ranks within an iteration, not the scores of two iterations: their scale may change. If it does, "
        "the axis is logarithmic on both sides of zero.",
    ),
    "score_histogram": (
        plot_score_histogram,
        "First and last third of the iterations. The outermost bars include everything beyond them.",
    ),
}
"""By name: how the figure is drawn, and its caption."""
ALL_FIGURES = (*CURVES, *_DRAWN)
"""Names of all figures. Those whose data no run recorded are not drawn."""


def too_short(comparison: Comparison) -> list[str]:
    """Return the names of the curves that the runs have a value of, and not enough for a line.

    What no run recorded is of other runs: a run in environments has no exact match, and that is no news.

    Args:
        comparison: the runs.
    """
    runs = [run for method in comparison.methods.values() for run in method.finished]
    longest = {name: max((len(curve.read(run)) for run in runs), default=0) for name, curve in CURVES.items()}
    return [name for name, length in longest.items() if length == 1]


def draw_figures(comparison: Comparison, folder: Path, *, earlier: Collection[str] = ()) -> dict[str, Figure]:
    """Draw what the runs have data for, and remove what an earlier report has left.

    Args:
        comparison: the runs.
        folder: of the PNG files. It may contain files of the user, which stay.
        earlier: names of the figures that the earlier report lists.

    Returns:
        The figures by name, in the order of `ALL_FIGURES`, the parts of a reward behind the curves.
    """
    figures: dict[str, Figure] = {}
    parts = part_curves(comparison)
    curves = {**CURVES, **parts}
    # A part may be gone. The names come from a file, which must not remove others.
    for name in filter(PART_FIGURE.fullmatch, {*earlier} - parts.keys()):
        (folder / f"{name}.png").unlink(missing_ok=True)
    names = [name for name in ALL_FIGURES if name in CURVES], [name for name in ALL_FIGURES if name in _DRAWN]
    for name in (*names[0], *parts, *names[1]):
        path = folder / f"{name}.png"
        if name in curves:
            alternative = plot_curve(comparison, path, curves[name])
            caption = curves[name].caption
        else:
            draw, caption = _DRAWN[name]
            alternative = draw(comparison, path)
            caption = f"{caption} {results_legend(comparison)}" if name == "results" else caption
        if alternative is None:
            _LOG.info("figure %s skipped: no finished run recorded data for it", name)
            path.unlink(missing_ok=True)  # left by an earlier report
            continue
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        figures[name] = Figure(name, caption, alternative, f"data:image/png;base64,{encoded}")
    return figures
