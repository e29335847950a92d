"""Renders the HTML of a report: one file with all figures inside and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ippo_lightning.report.canvas import method_colours
from ippo_lightning.report.curves import CURVES, PART_FIGURES, constant_words
from ippo_lightning.report.display import counted, percent, plain, unbroken, whole
from ippo_lightning.report.equal_compute import COSTS, EqualCost
from ippo_lightning.report.evidence import extremes, label_meanings
from ippo_lightning.report.headline import baseline_summary, compared_methods, difference_of, findings, headline, lead
from ippo_lightning.report.health import HealthRow, health, health_words
from ippo_lightning.report.kept import kept_table, kept_words
from ippo_lightning.report.measures import MEASURES, compared_metrics
from ippo_lightning.report.misleading import Detection
from ippo_lightning.report.overview import course, overview
from ippo_lightning.report.parts import PARTS, model_parts
from ippo_lightning.report.plan_changes import plan_changes
from ippo_lightning.report.played_episodes import PlayedEpisode
from ippo_lightning.report.published import published_table
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.sample_counts import measure_of, shown_columns
from ippo_lightning.report.seed_words import band_words, difference_words, table_spread
from ippo_lightning.report.selection_tables import (
    MISLEADING,
    equal_costs,
    equal_metrics,
    equal_rows,
    not_judged_words,
    seconds_words,
)
from ippo_lightning.report.summary import FEW_SEEDS, Results, common_result
from ippo_lightning.report.tables import intervals_over, own_columns, pairs_over, shared_cores_words
from ippo_lightning.report.wording import wording
from ippo_lightning.storage.public_yaml import public_yaml
from ippo_lightning.storage.untrusted_text import visible_text

# The other figures have places of their own in the template.
_TRAINING_FIGURES = (*CURVES, "time_parts")
_LAST_REWARD = "validation_reward"
_MOST_LISTED = 12
"""Unfinished runs that are listed at once; more of them, as of a large comparison that has begun, are folded."""


@dataclass(frozen=True)
class Figure:
    """One PNG and the texts that go with it."""

    name: str
    caption: str
    alternative: str
    """The figure in words, for readers who cannot see it."""
    data_uri: str
    """The PNG itself, so that the report needs no other file."""


def render_html(
    comparison: Comparison,
    results: Results,
    figures: Mapping[str, Figure],
    *,
    skipped: Sequence[str],
    played: Sequence[PlayedEpisode] = (),
    equal: Mapping[str, Mapping[str, EqualCost]] | None = None,
    detections: Mapping[str, Detection] | None = None,
) -> str:
    """Return the report as HTML.

    Args:
        comparison: the runs.
        results: from `summarise`.
        figures: by name.
        skipped: names of the figures that the runs have too little data for.
        played: episodes in environments, in pictures.
        equal: from `equal_compute`; None leaves the section out.
        detections: by method, from `detection`; None leaves the section out.

    Returns:
        One HTML file. Every text from a run is escaped: a model may have written HTML.
    """
    # Escaped always, and not by the end of a file's name, as jinja2's own selection would.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # A misspelt name in the template is an error, not an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # what the report reads is the whole configuration; what it shows is for others
    environment.filters.update(
        percent=percent, plain=plain, whole=whole, visible=visible_text, unbroken=unbroken, public=public_yaml
    )
    methods = comparison.methods.values()
    # A control that drops at random has weights and labels but no scores, so no extremes.
    scored = [method for method in methods if any(episode.score is not None for episode in method.episodes)]
    kept = {method.name: found for method in methods if (found := kept_table(method)) is not None}
    changed = {method.name: changes for method in methods if (changes := plan_changes(method))}
    verdicts = health(comparison)
    summaries = list(results["methods"].values())
    columns = shown_columns(summaries)
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        results=results,
        figures=figures,
        training_figures=[figures[name] for name in _training_figures(figures)],
        played=played,
        equal_rows=equal_rows(equal or {}, results),
        equal_metrics=equal_metrics(equal or {}),
        equal_titles=[wording(comparison)(COSTS[cost][0]) for cost in equal_costs(equal or {})],
        seconds_words=seconds_words(equal or {}, results),
        detections=detections or {},
        misleading=MISLEADING,
        not_judged=not_judged_words(comparison, detections or {}),
        has_curves=any(name != "time_parts" for name in _training_figures(figures)),
        skipped=[name.replace("_", " ") for name in skipped],
        constant=constant_words(comparison),
        colours=method_colours(comparison),
        headline=headline(results),
        lead=_lead(comparison, results, verdicts),
        compared=[_compared(results, name) for name in compared_methods(results)],
        baselines=comparison.baselines,
        measure_of=measure_of,
        columns=columns,
        all_percent=bool(columns) and all(measure_of(column).is_fraction for column in columns),
        any_percent=any(MEASURES[metric].is_fraction for metric in compared_metrics(summaries)),
        compared_metrics=compared_metrics(summaries),
        own_columns=own_columns(summaries),
        metric_names=_metric_names(results, columns),
        counted=counted,
        words=wording(comparison),
        origins=_origins(comparison),
        paper=published_table(comparison, results),
        sampling=_sampling(comparison),
        scope=_scope(comparison),
        pairs_over=pairs_over(results),
        difference_words=difference_words(results),
        table_spread=table_spread(results),
        band_words=band_words(results),
        few_seeds=FEW_SEEDS,
        most_listed=_MOST_LISTED,
        intervals_over=intervals_over(results),
        shared_cores=shared_cores_words(results),
        several_seeds=any(len(method.finished) > 1 for method in methods),
        health=verdicts,
        judged=[name for name in comparison.methods if any(name in row.verdicts for row in verdicts)],
        kept_tables=kept,
        kept_words={name: kept_words(table) for name, table in kept.items()},
        plan_changes=changed,
        model_parts=model_parts(comparison, PARTS),
        label_meanings=label_meanings({row.label for table in kept.values() for row in table.rows}),
        extremes=[_extremes(method) for method in scored],
        # Scores are in the history of any run, also without recorded episodes.
        has_episodes=bool(kept or scored or changed or "score_quantiles" in figures),
        drawn_methods=[method.name for method in methods if any(run.history for run in method.finished)],
        unreadable={f"{run.folder.parent.name}/{run.folder.name}": run.unreadable_lines
                    for method in methods for run in method.runs if run.unreadable_lines},
    )  # fmt: skip


def _training_figures(figures: Mapping[str, Figure]) -> list[str]:
    """Return the names in their order, the parts of a reward behind the reward."""
    parts = [name for name in figures if PART_FIGURES in name]
    place = _TRAINING_FIGURES.index(_LAST_REWARD) + 1
    names = (*_TRAINING_FIGURES[:place], *parts, *_TRAINING_FIGURES[place:])
    return [name for name in names if name in figures]


def _lead(comparison: Comparison, results: Results, verdicts: list[HealthRow]) -> list[str]:
    """Return the sentences below the headline; the last ones are about the health of what the report is about."""
    found = lead(results)
    # A headline is about one pair. Whoever has chosen the runs wants to see how each of them went.
    sentences = [*found, *(course(comparison) if comparison.side_by_side else [])] if found else []
    sentences = sentences or overview(comparison, results)
    featured = [method for method in comparison.methods.values() if method.featured]
    trained = [method for method in comparison.methods.values() if not method.is_untrained]
    # Without a featured method, a healthy one must not stand for the others.
    words = wording(comparison)
    return [words(sentence) for sentence in [*sentences, *health_words(verdicts, featured or trained)]]


def _compared(results: Results, name: str) -> dict[str, object]:
    """Collect one row of the table of differences."""
    differences = difference_of(results, name) or {}
    return {
        "name": name,
        "title": results["methods"][name]["title"],
        "baseline_title": baseline_summary(results, name)["title"],
        "differences": differences,
        "num_seeds": max(len(one["seeds"]) for one in differences.values()),
        "words": {finding.metric: finding.word for finding in findings(results, name)},
    }


def _extremes(method: Method) -> dict[str, object]:
    ends = {
        "Highest": extremes(method, most_positive=True),
        "Lowest": extremes(method, most_positive=False),
    }
    return {"method": method, "ends": ends, "several_seeds": len(method.finished) > 1}


def _metric_names(results: Results, columns: Sequence[str]) -> dict[str, str]:
    names = {column: measure_of(column).title for column in (*MEASURES, *columns)}
    k = results.get("k")
    return names if k is None else {**names, "pass_at_k": f"Pass@{k}"}


def _sampling(comparison: Comparison) -> str:
    """Return the size of the test, as far as all runs agree on it."""
    # Control runs of earlier versions counted their episodes as prompts.
    noun = "test episode" if comparison.is_control else "test prompt"
    sizes = [common_result(comparison, key) for key in ("num_prompts", "num_episodes")]
    parts = [counted(size, noun) for size in sizes if size is not None]
    samples = common_result(comparison, "samples_per_prompt")
    parts += [f"{counted(samples, 'sampled response')} per prompt"] if samples is not None else []
    return ", ".join(parts)


def _origins(comparison: Comparison) -> list[dict[str, object]]:
    """Return how each run began that the user has chosen, as far as the runs recorded it."""
    if not comparison.side_by_side:
        return []  # the command of the comparison began all of them
    shared = (comparison.machine, comparison.versions)
    return [
        {
            "title": method.title if run.seed is None else f"{method.title}, seed {run.seed}",
            "command": run.origin.command,
            "machine": "" if run.origin.machine == shared[0] else run.origin.machine,
            "versions": {} if run.origin.versions == shared[1] else run.origin.versions,
        }
        for method in comparison.methods.values()
        for run in method.runs
        if run.origin.command or run.origin.machine or run.origin.versions
    ]


def _scope(comparison: Comparison) -> str:
    methods = comparison.methods.values()
    seeds = {run.seed for method in methods for run in method.finished}
    # Iterations of SFT are steps of another kind, so the span leaves them out.
    iterations = [
        len(run.history) for method in methods for run in method.finished if run.series("update/kept_fraction")
    ]
    parts = [counted(len(comparison.methods), "method"), counted(len(seeds), "seed")]
    if iterations:
        span = f"{min(iterations)} to " if min(iterations) < max(iterations) else ""
        parts.append(f"{span}{counted(max(iterations), 'iteration')}")
    return " · ".join(parts)
