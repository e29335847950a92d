"""The report of a comparison: numbers, tables, figures, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

from ippo_lightning.report import plots
from ippo_lightning.report.canvas import method_colours
from ippo_lightning.report.display import percent, plain, points, unbroken
from ippo_lightning.report.evidence import extremes, label_meanings, label_table
from ippo_lightning.report.folders import Comparison, Method, gather_runs, read_comparison
from ippo_lightning.report.headline import compared_methods, findings, headline, lead
from ippo_lightning.report.summary import BASELINE, METRICS, summarise
from ippo_lightning.report.tables import kept_fraction, results_markdown, results_table, seconds_per_iteration
from ippo_lightning.report.trust import HEALTH, PARTS, trust
from ippo_lightning.storage.untrusted_text import visible_text

_LOG = logging.getLogger(__name__)
_TABLE_WIDTH = 80


@dataclass(frozen=True)
class Figure:
    """One PNG with what the page says about it."""

    name: str
    caption: str
    alternative: str
    data_uri: str


_BAND = "Line: mean over seeds; band: 95 % bootstrap interval over seeds."
_FIGURES: Mapping[str, tuple[Callable[[Comparison, Path], str | None], str]] = {
    "results": (
        plots.plot_results,
        "Final test results. Large dot: mean; small dots: seeds; bar: 95 % bootstrap interval over seeds.",
    ),
    "exact_match": (plots.plot_exact_match, f"Fraction of validation prompts answered right. {_BAND}"),
    "unfaithful_fraction": (
        plots.plot_unfaithful_fraction,
        f"Of the right answers on validation prompts, how many have wrong or missing steps. Lower is better. {_BAND}",
    ),
    "kept_fraction": (plots.plot_kept_fraction, f"Fraction of the sampled episodes that the update used. {_BAND}"),
    "effective_sample_size": (
        plots.plot_effective_sample_size,
        f"How many equally weighted episodes the weights are worth, (sum w)² / sum w². {_BAND}",
    ),
    "iteration_seconds": (plots.plot_iteration_seconds, f"Wall-clock time of each iteration. {_BAND}"),
    "time_parts": (
        plots.plot_time_parts,
        "Mean over iterations and seeds. Influence: scoring and selecting episodes; rest: what no stage measured.",
    ),
    "score_quantiles": (
        plots.plot_score_quantiles,
        "How the scores of each iteration are spread. Line: median; bands: middle half and middle four fifths of the "
        "episodes; above the black line an episode is kept.",
    ),
    "score_histogram": (
        plots.plot_score_histogram,
        "First and last third of the iterations. The outermost bars hold everything beyond them.",
    ),
}
_TRAINING_FIGURES = (
    "exact_match", "unfaithful_fraction", "kept_fraction", "effective_sample_size", "iteration_seconds", "time_parts",
)  # fmt: skip


def write_report(root: Path | str) -> Path:
    """Write results.json, table.txt, results.md, figures/*.png and report.html into a comparison's folder.

    Args:
        root: the folder that holds comparison.json. Files of an earlier report are replaced.

    Returns:
        The path of report.html, one file that needs no other.

    Raises:
        UserError: comparison.json is missing or unusable.
    """
    return write_page(read_comparison(root))


def report_of(folders: Sequence[Path], *, output: Path | None = None) -> Path:
    """Write the page of one run, of several side by side, or of a comparison.

    Args:
        folders: runs, or the one folder of a comparison. Runs named `<method>/seed_<n>` are grouped by method.
        output: folder of the page; by default that of the comparison, or `report/` in the first run's.

    Returns:
        The path of report.html.

    Raises:
        UserError: a folder holds no run, or comparison.json is unusable.
    """
    if len(folders) == 1 and (folders[0] / "comparison.json").is_file():
        comparison = read_comparison(folders[0])
        return write_page(comparison if output is None else replace(comparison, root=output))
    return write_page(gather_runs(folders, root=output or folders[0] / "report"))


def write_page(comparison: Comparison) -> Path:
    """Write all that a report is into `comparison.root`; return the path of report.html."""
    results = summarise(comparison)
    folder = comparison.root
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    _write(folder / "table.txt", _rendered_table(results))
    _write(folder / "results.md", results_markdown(results))
    figures = _draw_figures(comparison, folder / "figures")
    page = folder / "report.html"
    _write(page, _render(comparison, results, figures))
    return page


def _draw_figures(comparison: Comparison, folder: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, (draw, caption) in _FIGURES.items():
        path = folder / f"{name}.png"
        alternative = draw(comparison, path)
        if alternative is None:
            _LOG.info("figure %s skipped: no finished run recorded data for it", name)
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        figures[name] = Figure(name, caption, alternative, f"data:image/png;base64,{encoded}")
    return figures


def _rendered_table(results: Mapping[str, Any]) -> str:
    console = Console(file=io.StringIO(), record=True, width=_TABLE_WIDTH, color_system=None, legacy_windows=False)
    console.print(results_table(results))
    return "\n".join(line.rstrip() for line in console.export_text(styles=False).splitlines()) + "\n"


def _render(comparison: Comparison, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, plain=plain, points=points, visible=visible_text, unbroken=unbroken)
    methods = comparison.methods.values()
    scored = [method for method in methods if any(episode.score is not None for episode in method.episodes)]
    shares = {method.name: found for method in methods if (found := label_table(method)) is not None}
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        results=results,
        figures=figures,
        training_figures=[figures[name] for name in _TRAINING_FIGURES if name in figures],
        skipped=[name.replace("_", " ") for name in _FIGURES if name not in figures],
        colours=method_colours(comparison),
        headline=headline(results),
        lead=lead(results),
        findings={name: findings(results, name) for name in compared_methods(results)},
        baseline=BASELINE,
        metrics=METRICS,
        metric_names=_metric_names(comparison),
        sampling=_sampling(comparison),
        scope=_scope(comparison),
        kept_fraction=kept_fraction,
        seconds_per_iteration=seconds_per_iteration,
        label_table=shares,
        trust_tables={
            "How far the scores can be trusted, mean over the iterations that looked": trust(comparison, HEALTH),
            "Which part of the model the scores come from, fraction of absolute parts": trust(comparison, PARTS),
        },
        label_meanings=label_meanings({label for found in shares.values() for label in found.shares}),
        extremes=[_extremes(method) for method in scored],
        unreadable={f"{run.folder.parent.name}/{run.folder.name}": run.unreadable_lines
                    for method in methods for run in method.runs if run.unreadable_lines},
    )  # fmt: skip


def _extremes(method: Method) -> dict[str, Any]:
    ends = {
        "Most positive": extremes(method, most_positive=True),
        "Most negative": extremes(method, most_positive=False),
    }
    return {"method": method, "ends": ends}


def _metric_names(comparison: Comparison) -> dict[str, str]:
    k = _common_result(comparison, "k")
    return {
        "exact_match": "Exact match",
        "majority_vote": "Majority vote",
        "pass_at_k": "Pass@k" if k is None else f"Pass@{k}",
        "unfaithful_fraction": "Unfaithful fraction",
    }


def _sampling(comparison: Comparison) -> str:
    """Say on what the test numbers stand, where all runs agree."""
    prompts, samples = _common_result(comparison, "num_prompts"), _common_result(comparison, "samples_per_prompt")
    parts = [f"{prompts:,} test prompts"] if prompts is not None else []
    parts += [f"{samples} sampled responses a prompt"] if samples is not None else []
    return ", ".join(parts)


def _common_result(comparison: Comparison, key: str) -> int | None:
    found = {run.result(key) for method in comparison.methods.values() for run in method.finished}
    value = found.pop() if len(found) == 1 else None
    return None if value is None else int(value)


def _scope(comparison: Comparison) -> str:
    methods = comparison.methods.values()
    seeds = {run.seed for method in methods for run in method.finished}
    iterations = [
        len(run.history) for method in methods for run in method.finished if run.series("update/kept_fraction")
    ]
    parts = [_count(len(comparison.methods), "method"), _count(len(seeds), "seed")]
    if iterations:
        span = f"{min(iterations)} to {max(iterations)}" if min(iterations) < max(iterations) else str(max(iterations))
        parts.append(f"{span} iterations")
    return " · ".join(parts)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
