"""Writes the report of a comparison: numbers, tables, figures, and one HTML file that contains them all."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ippo_lightning.report import plots
from ippo_lightning.report.comparisons import gather_runs, read_comparison, with_roles
from ippo_lightning.report.published import published_markdown
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.rendering import Figure, render_html
from ippo_lightning.report.summary import Results, summarise
from ippo_lightning.report.tables import results_markdown, results_table
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import (
    COMPARISON,
    FIGURES,
    REPORT,
    REPORT_FOLDER,
    RESULTS,
    RESULTS_MARKDOWN,
    TABLE,
    refuse_run_folder,
)

_LOG = logging.getLogger(__name__)
_TABLE_WIDTH = 80
_BAND = "Line: mean over seeds; band: 95 % bootstrap interval over seeds."
_FIGURES: Mapping[str, tuple[Callable[[Comparison, Path], str | None], str]] = {
    "results": (
        plots.plot_results,
        "Final test results. Large dot: mean; small dots: seeds; bar: 95 % bootstrap interval over seeds.",
    ),
    "exact_match": (plots.plot_exact_match, f"Fraction of right responses to validation prompts. {_BAND}"),
    "unfaithful_fraction": (
        plots.plot_unfaithful_fraction,
        "Fraction of the right answers to validation prompts whose steps are wrong or missing. Lower is better. "
        f"{_BAND}",
    ),
    "kept_fraction": (plots.plot_kept_fraction, f"Fraction of the sampled episodes that the update used. {_BAND}"),
    "effective_sample_size": (
        plots.plot_effective_sample_size,
        "The weights are worth this many equally weighted episodes: "
        f"(sum\N{NO-BREAK SPACE}w)² / sum\N{NO-BREAK SPACE}w². {_BAND}",
    ),
    "iteration_seconds": (plots.plot_iteration_seconds, f"Wall-clock time of each iteration. {_BAND}"),
    "time_parts": (
        plots.plot_time_parts,
        "Mean over iterations and seeds. Influence: the time to score and select episodes. Rest: the time outside all "
        "measured stages.",
    ),
    "score_quantiles": (
        plots.plot_score_quantiles,
        "Influence scores of each iteration. Line: median; bands: 25-75 % and 10-90 % quantiles; black line: zero.",
    ),
    "score_histogram": (
        plots.plot_score_histogram,
        "First and last third of the iterations. The outermost bars include everything beyond them.",
    ),
}


def write_report(root: Path | str) -> Path:
    """Write results.json, table.txt, results.md, figures/*.png and report.html into a comparison's folder.

    Args:
        root: the folder that contains comparison.json. The files of an earlier report are replaced.

    Returns:
        The path of report.html, one file that needs no other.

    Raises:
        UserError: comparison.json is missing or unusable.
    """
    return write_files(read_comparison(root))


def report_of(
    folders: Sequence[Path], *, output: Path | None = None, baseline: str | None = None, featured: str | None = None
) -> Path:
    """Write the report of one run, of several runs side by side, or of a comparison.

    Args:
        folders: runs, or the one folder of a comparison. Runs named `<method>/seed_<n>` are grouped by method.
        output: folder of the report; by default the folder of the comparison, or `report/` in the first run's folder.
        baseline: name of the method that all others are compared with; by default what comparison.json states, and
            none for runs.
        featured: name of the method that the headline is about; by default what comparison.json states.

    Returns:
        The path of report.html.

    Raises:
        UserError: a folder contains no run, comparison.json is unusable, or a name is no method of the report.
    """
    if len(folders) == 1 and (folders[0] / COMPARISON).is_file():
        comparison = read_comparison(folders[0])
        comparison = comparison if output is None else replace(comparison, root=output)
    else:
        # Not the run's folder itself: results.json of the report would replace results.json of the run.
        comparison = gather_runs(folders, root=output or folders[0] / REPORT_FOLDER)
    return write_files(with_roles(comparison, baseline=baseline, featured=featured))


def write_files(comparison: Comparison) -> Path:
    """Write all files of a report into `comparison.root`; return the path of report.html.

    Args:
        comparison: from `read_comparison` or `gather_runs`.

    Raises:
        UserError: `comparison.root` is the folder of a run.
    """
    refuse_run_folder("output", comparison.root)
    # Computed once for all files, because each interval takes 9,999 resamples.
    results = summarise(comparison)
    folder = comparison.root
    folder.mkdir(parents=True, exist_ok=True)
    # allow_nan=False, because NaN is no JSON and other readers would refuse the file.
    _write(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    _write(folder / TABLE, _table_text(results))
    _write(folder / RESULTS_MARKDOWN, results_markdown(results) + published_markdown(comparison, results))
    figures = _draw_figures(comparison, folder / FIGURES)
    skipped = [name for name in _FIGURES if name not in figures]
    path = folder / REPORT
    _write(path, render_html(comparison, results, figures, skipped=skipped))
    return path


def _draw_figures(comparison: Comparison, folder: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, (draw, caption) in _FIGURES.items():
        path = folder / f"{name}.png"
        alternative = draw(comparison, path)
        if alternative is None:
            _LOG.info("figure %s skipped: no finished run recorded data for it", name)
            path.unlink(missing_ok=True)  # left by an earlier report
            continue
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        figures[name] = Figure(name, caption, alternative, f"data:image/png;base64,{encoded}")
    return figures


def _table_text(results: Results) -> str:
    # A width of its own: the file must not depend on the terminal of whoever wrote it.
    console = Console(file=io.StringIO(), record=True, width=_TABLE_WIDTH, color_system=None, legacy_windows=False)
    console.print(results_table(results))
    # rich fills every line up to the width; a file has no use for these spaces.
    return "\n".join(line.rstrip() for line in console.export_text(styles=False).splitlines()) + "\n"


def _write(path: Path, text: str) -> None:
    # Bytes, and so a fixed end of line: the same runs give the same file on every system.
    write_text_whole(path, text)
