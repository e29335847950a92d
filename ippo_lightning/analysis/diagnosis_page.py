"""Writes a diagnosis: one HTML file with its figures inside, the figures, and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ippo_lightning.analysis.diagnosed_round import DiagnosedRound, lengths_of
from ippo_lightning.analysis.diagnosis_figures import draw_advantages, draw_both, draw_by_rank, draw_maps
from ippo_lightning.analysis.diagnosis_words import captions, headline, lead, notes, rows_of_table, steps, verdict
from ippo_lightning.analysis.pages import FROM_ZERO, Draw, PageFigure, nothing, page_environment, page_figures
from ippo_lightning.records import ControlEpisodes, TextEpisodes
from ippo_lightning.report.display import MISSING, counted, percent, plain
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.output_folders import refuse_run_folder
from ippo_lightning.storage.run_folder import FIGURES, RunFolder
from ippo_lightning.storage.untrusted_text import cut

PAGE, NUMBERS = "diagnosis.html", "diagnosis.json"
_SHOWN_TEXTS = 5
_LONGEST_TEXT = 600


def write_diagnosis(diagnosed: DiagnosedRound, folder: Path, *, run: str, command: str, seed: int) -> Path:
    """Write diagnosis.html, diagnosis.json and figures/*.png; return the path of the page.

    Args:
        diagnosed: what was found.
        folder: of the page; the files of an earlier diagnosis are replaced.
        run: name of the run.
        command: that made the page, as others may read it.
        seed: of the random records.

    Raises:
        UserError: `folder` is the folder of a run, or a part of one.
        OSError: a file cannot be written.
    """
    refuse_run_folder("output", folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = _figures(diagnosed, folder / FIGURES)
    RunFolder(folder).write(NUMBERS, numbers_of(diagnosed, run=run, command=command, seed=seed))
    page = folder / PAGE
    write_text_whole(page, _rendered(diagnosed, figures, run=run, command=command, seed=seed))
    return page


def numbers_of(diagnosed: DiagnosedRound, *, run: str, command: str, seed: int) -> dict[str, Any]:
    """Return all numbers of the page, and the records at both ends, as JSON has them; arguments as above."""
    found, monte_carlo = diagnosed.found, diagnosed.monte_carlo
    correlation = found.correlation
    return {
        "format": 1,
        "run": run,
        "iteration": diagnosed.iteration,
        "command": command,
        "seed": seed,
        "headline": headline(diagnosed),
        "verdict": verdict(diagnosed),
        "target": diagnosed.scores.target,
        "target_words": diagnosed.scores.words,
        "baseline": monte_carlo.baseline,
        "gamma": diagnosed.gamma,
        "records": len(found.records),
        "records_bootstrapped": monte_carlo.bootstrapped,
        "records_unfinished": diagnosed.num_unfinished,
        "records_without_score": diagnosed.num_broken,
        "trains_policy": diagnosed.trains_policy,
        "lowest": asdict(found.of_lowest),
        "highest": asdict(found.of_highest),
        "all": asdict(found.of_all),
        "random": {name: asdict(control) for name, control in found.control.items()},
        "spearman": None if correlation is None else asdict(correlation),
        "difference_by_rank": [asdict(one) for one in found.difference_by_rank],
        "product_by_rank": [asdict(one) for one in found.product_by_rank],
        "labels": [asdict(one) for one in diagnosed.shares],
        "lengths": lengths_of(diagnosed) if isinstance(diagnosed.episodes, TextEpisodes) else None,
        "lowest_records": [_record(diagnosed, int(row)) for row in found.lowest],
        "highest_records": [_record(diagnosed, int(row)) for row in found.highest],
    }


def _record(diagnosed: DiagnosedRound, row: int) -> dict[str, Any]:
    records, episodes = diagnosed.found.records, diagnosed.episodes
    entry: dict[str, Any] = {
        "row": int(diagnosed.positions[row]),
        "score": float(records.scores[row]),
        "estimate": float(records.estimates[row]),
        "monte_carlo": float(records.monte_carlo[row]),
        "reward": float(episodes.outcome_rewards[row]),
        "weight": float(diagnosed.weights[row]),
    }
    if isinstance(episodes, ControlEpisodes):
        seen = episodes.observations[row, 0]
        action = episodes.actions[row, 0].tolist()
        # Images would make the file large.
        return {**entry, "action": action, "observation": seen.tolist() if seen.numel() <= _MOST_OBSERVED else None}
    assert isinstance(episodes, TextEpisodes), "a kept round has no other rows"
    return {
        **entry,
        "label": diagnosed.labels[row] if diagnosed.labels else None,
        "tokens": int(episodes.lengths[row]),
        "prompt": cut(episodes.prompts[row], _LONGEST_TEXT),
        "response": cut(episodes.responses[row], _LONGEST_TEXT),
    }


_MOST_OBSERVED = 64


def _figures(diagnosed: DiagnosedRound, folder: Path) -> dict[str, PageFigure]:
    found = diagnosed.found
    drawings: dict[str, Draw] = {"both": partial(draw_both, found)}
    if diagnosed.grid is not None:
        ends = [
            (f"{len(rows)} {name} scores", diagnosed.arrows(rows))
            for name, rows in (("lowest", found.lowest), ("highest", found.highest))
        ]
        drawings = {"maps": partial(draw_maps, diagnosed.grid, ends), **drawings}
    else:
        drawings["advantages"] = partial(draw_advantages, found)
    by_rank = {
        "difference": (found.difference_by_rank, "How far the advantages differ, by rank", "|Monte Carlo - estimate|"),
        "product": (found.product_by_rank, "Do the advantages agree, by rank", "Monte Carlo times estimate"),
    }
    for name, (bins, title, axis) in by_rank.items():
        if bins:
            drawings[name] = partial(draw_by_rank, bins, title=title, name=axis, ends=len(found.lowest))
    # those without data, too: an earlier page may have left them
    return page_figures(
        folder, [(name, caption, drawings.get(name, nothing)) for name, caption in captions(diagnosed).items()]
    )


def _rendered(
    diagnosed: DiagnosedRound, figures: Mapping[str, PageFigure], *, run: str, command: str, seed: int
) -> str:
    found = diagnosed.found
    count = counted(len(found.records), diagnosed.noun)
    return (
        page_environment()
        .get_template("diagnosis.html.j2")
        .render(
            headline=headline(diagnosed),
            lead=lead(diagnosed),
            notes=notes(diagnosed),
            scope=f"{run} · iteration {diagnosed.iteration} ({FROM_ZERO}) · {count}",
            noun=diagnosed.noun,
            figures=figures,
            table=rows_of_table(diagnosed),
            control=found.control,
            count=len(found.lowest),
            percent=percent,
            plain=plain,
            shares=diagnosed.shares,
            texts=_texts(diagnosed),
            steps=steps(diagnosed, seed=seed),
            command=command,
        )
    )


def _texts(diagnosed: DiagnosedRound) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(diagnosed.episodes, TextEpisodes):
        return {}
    ends = {"Lowest scores": diagnosed.found.lowest, "Highest scores": diagnosed.found.highest}
    return {
        title: [{**entry, "label": entry["label"] or MISSING} for entry in _shown(diagnosed, rows)]
        for title, rows in ends.items()
    }


def _shown(diagnosed: DiagnosedRound, rows: np.ndarray) -> list[dict[str, Any]]:
    return [_record(diagnosed, int(row)) for row in rows[:_SHOWN_TEXTS]]
