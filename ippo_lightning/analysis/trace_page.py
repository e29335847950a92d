"""Writes a trace: one HTML file with its figures inside, the figures, and the numbers as JSON."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ippo_lightning.analysis.behaviours import words_of
from ippo_lightning.analysis.grid_map import GridMap
from ippo_lightning.analysis.pages import FROM_ZERO, Draw, PageFigure, nothing, page_environment, page_figures
from ippo_lightning.analysis.trace_figures import draw_clouds, draw_curves, draw_maps
from ippo_lightning.analysis.trace_words import captions, headline, lead, steps
from ippo_lightning.analysis.traced_rounds import Trace, TracedRound, shown_rounds
from ippo_lightning.records import ControlEpisodes, TextEpisodes
from ippo_lightning.report.display import counted
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.output_folders import refuse_run_folder
from ippo_lightning.storage.run_folder import FIGURES, RunFolder
from ippo_lightning.storage.untrusted_text import cut

PAGE, NUMBERS = "trace.html", "trace.json"
_SHOWN_ROUNDS = 4
_SHOWN_RECORDS = 5
_SHOWN_ROWS = 40
"""Lines of the table of iterations."""
_LONGEST_TEXT = 600


def write_trace(trace: Trace, folder: Path, *, run: str, command: str, grid: GridMap | None) -> Path:
    """Write trace.html, trace.json and figures/*.png; return the path of the page.

    Args:
        trace: of a behaviour.
        folder: of the page; the files of an earlier trace are replaced.
        run: name of the run.
        command: that made the page, as others may read it.
        grid: map of the environment; None without one.

    Raises:
        UserError: `folder` is the folder of a run.
        OSError: a file cannot be written.
    """
    refuse_run_folder("output", folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = _figures(trace, folder / FIGURES, grid)
    RunFolder(folder).write(NUMBERS, numbers_of(trace, run=run, command=command))
    page = folder / PAGE
    write_text_whole(page, _rendered(trace, figures, run=run, command=command))
    return page


def numbers_of(trace: Trace, *, run: str, command: str) -> dict[str, Any]:
    """Return all numbers of the page as JSON has them.

    Args:
        trace: of a behaviour.
        run: name of the run.
        command: that made the page.
    """
    names = trace.phases.of_iteration or (None,) * len(trace.rounds)
    return {
        "format": 1,
        "run": run,
        "command": command,
        "headline": headline(trace),
        "behaviour": trace.behaviour.words,
        "origin": trace.behaviour.origin,
        "measure": trace.behaviour.measure,
        "scores": trace.options.scores,
        "neighbours": trace.options.neighbours,
        "seed": trace.options.seed,
        "value_after": trace.values[-1],
        "log_prob_after": trace.last_log_prob,
        "phases_are_seen": trace.phases.are_seen,
        "median_relative_roughness": list(trace.phases.medians),
        "p_values": list(trace.phases.p_values),
        "iterations": [
            {
                "iteration": one.iteration,
                "phase": name,
                "value": value,
                "log_prob": one.log_prob,
                "records": len(one.scores),
                "positive": len(one.positive),
                "roughness": None if one.roughness is None else asdict(one.roughness),
                "seconds": one.seconds,
                "top": [_record(one, place) for place in range(len(one.top))],
            }
            for one, name, value in zip(trace.rounds, names, trace.values[:-1], strict=True)
        ],
    }


def _record(one: TracedRound, place: int) -> dict[str, Any]:
    row, records = int(one.top[place]), one.records
    advantages = records.advantages[place][records.mask[place]]
    entry: dict[str, Any] = {
        "row": row,
        "score": float(one.scores[row]),
        "relative_score": float(one.scores[row] / one.scores[one.top[0]]),
        "advantage": float(advantages.mean()) if len(advantages) else None,
        "reward": float(records.outcome_rewards[place]),
    }
    if isinstance(records, TextEpisodes):
        texts = {"prompt": records.prompts[place], "response": records.responses[place]}
        return entry | {name: cut(text, _LONGEST_TEXT) for name, text in texts.items()}
    return entry | {"record": words_of(records, place)}


def _figures(trace: Trace, folder: Path, grid: GridMap | None) -> dict[str, PageFigure]:
    drawings: dict[str, Draw] = {"curves": partial(draw_curves, trace)}
    shown = shown_rounds(trace, _SHOWN_ROUNDS)
    if shown and grid is not None and isinstance(trace.behaviour.record, ControlEpisodes):
        drawings["maps"] = partial(draw_maps, grid, shown, trace.behaviour.record)
    elif shown:
        drawings["clouds"] = partial(draw_clouds, shown)
    titles = captions(trace, top=trace.options.top)
    # those without data, too: an earlier page may have left them
    return page_figures(folder, [(name, caption, drawings.get(name, nothing)) for name, caption in titles.items()])


def _rendered(trace: Trace, figures: dict[str, PageFigure], *, run: str, command: str) -> str:
    numbers = numbers_of(trace, run=run, command=command)
    shown = {one.iteration for one in shown_rounds(trace, _SHOWN_ROUNDS)}
    every = -(-len(trace.rounds) // _SHOWN_ROWS)
    return (
        page_environment()
        .get_template("trace.html.j2")
        .render(
            headline=headline(trace),
            lead=lead(trace),
            scope=f"{run} · {_span(trace)}",
            figures=figures,
            measure=trace.behaviour.measure,
            rows=numbers["iterations"][::every],
            every=every,
            is_control=trace.is_control,
            top={
                row["iteration"]: row["top"][:_SHOWN_RECORDS]
                for row in numbers["iterations"]
                if row["iteration"] in shown
            },
            steps=steps(trace),
            command=command,
        )
    )


def _span(trace: Trace) -> str:
    first, *_, last = [one.iteration for one in (trace.rounds[0], *trace.rounds)]
    which = f"{first} to {last}" if last > first else f"{first}"
    return f"{counted(len(trace.rounds), 'iteration')}: {which} ({FROM_ZERO})"
