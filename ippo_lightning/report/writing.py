"""Writes the report of a comparison: numbers, tables, figures, and one HTML file that contains them all."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ippo_lightning.report.all_figures import draw_figures, too_short
from ippo_lightning.report.comparisons import gather_runs, read_comparison, with_roles
from ippo_lightning.report.equal_compute import equal_compute
from ippo_lightning.report.misleading import detection
from ippo_lightning.report.played_episodes import played_episodes
from ippo_lightning.report.published import published_markdown
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.rendering import render_html
from ippo_lightning.report.selection_tables import not_judged_words, selection_markdown
from ippo_lightning.report.summary import Results, summarise
from ippo_lightning.report.tables import results_markdown, results_table
from ippo_lightning.report.wording import wording
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.output_folders import make_writable, refuse_run_folder
from ippo_lightning.storage.run_folder import (
    COMPARISON,
    FIGURES,
    REPORT,
    REPORT_FOLDER,
    RESULTS,
    RESULTS_MARKDOWN,
    TABLE,
)

_TABLE_WIDTH = 80


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
        baseline: name of the method that all others are compared with; by default what comparison.json states, and for
            runs the first one, where the others have the same test.
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
        UserError: `comparison.root` is the folder of a run, or cannot be written into.
    """
    refuse_run_folder("output", comparison.root)
    make_writable("output", comparison.root)
    # Computed once for all files, because each interval takes 9,999 resamples.
    results = summarise(comparison)
    equal = equal_compute(comparison)
    detections = {m.name: found for m in comparison.methods.values() if (found := detection(m)) is not None}
    folder = comparison.root
    figures = draw_figures(comparison, folder / FIGURES, earlier=_figures_of(folder / RESULTS))
    # allow_nan=False, because NaN is no JSON and other readers would refuse the file.
    content = {**results, "equal_compute": equal, "detection": detections, "figures": list(figures)}
    _write(folder / RESULTS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    _write(folder / TABLE, _table_text(results))
    selection = selection_markdown(
        equal,
        detections,
        results,
        not_judged=not_judged_words(comparison, detections) if detections else "",
        words=wording(comparison),
    )
    _write(folder / RESULTS_MARKDOWN, results_markdown(results) + selection + published_markdown(comparison, results))
    skipped = [name for name in too_short(comparison) if name not in figures]
    path = folder / REPORT
    played = played_episodes(comparison)
    html = render_html(comparison, results, figures, skipped=skipped, played=played, equal=equal, detections=detections)
    _write(path, html)
    return path


def _figures_of(path: Path) -> list[str]:
    """Return the names of the figures that the results of an earlier report list; none if that cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    except (ValueError, RecursionError):
        return []
    listed = content.get("figures") if isinstance(content, dict) else None
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def _table_text(results: Results) -> str:
    # A width of its own: the file must not depend on the terminal of whoever wrote it.
    console = Console(file=io.StringIO(), record=True, width=_TABLE_WIDTH, color_system=None, legacy_windows=False)
    console.print(results_table(results))
    # rich fills every line up to the width; a file has no use for these spaces.
    return "\n".join(line.rstrip() for line in console.export_text(styles=False).splitlines()) + "\n"


def _write(path: Path, text: str) -> None:
    # Bytes, and so a fixed end of line: the same runs give the same file on every system.
    write_text_whole(path, text)
