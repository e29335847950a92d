"""The files of an intervention: numbers, figures, and one page that contains them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ippo_lightning.analysis.intervention_figures import draw_boxes, draw_by_iteration, draw_trainings, has_box
from ippo_lightning.analysis.intervention_summary import (
    Outcomes,
    as_json,
    changed_nothing,
    comparisons,
    headline,
    in_digits_of,
    lead,
)
from ippo_lightning.analysis.pages import Draw, PageFigure, nothing, page_environment, page_figures
from ippo_lightning.analysis.training_differences import Estimate
from ippo_lightning.report.display import counted, whole
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import FIGURES, RunFolder

PAGE, NUMBERS = "intervention.html", "intervention.json"


def write_intervention(outcomes: Outcomes, folder: Path) -> Path:
    """Write intervention.json, figures/*.png and intervention.html; return the path of the page.

    Args:
        outcomes: of at least one iteration.
        folder: of the page; the files of an earlier page are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).write(NUMBERS, as_json(outcomes))
    figures = _figures(outcomes, folder / FIGURES)
    write_text_whole(folder / PAGE, _html(outcomes, figures))
    return folder / PAGE


def _figures(outcomes: Outcomes, folder: Path) -> list[PageFigure]:
    boxes = any(has_box(found.means) for found in comparisons(outcomes).values())
    box = "box: quartiles and median; " if boxes else ""
    drawings: list[tuple[str, str, Draw]] = [
        (
            "trainings",
            "Top: the mean of each training (dots) and of each way to train (diamond above them); dotted: before the "
            "iteration. The dots of one way differ by the order of the minibatches, and those of the random drop also "
            "by what was dropped. Bottom: differences of the ways with their 95 % intervals over trainings and "
            f"{outcomes.noun}s; without a bar nothing varied.",
            partial(draw_trainings, outcomes),
        ),
        (
            "boxes",
            f"One dot per iteration, equal ones below each other; {box}diamond and bar above: the mean and its 95 % "
            "interval over iterations, if there are enough. If the scores matter, the difference to the random drop "
            "lies right of zero.",
            partial(draw_boxes, outcomes),
        ),
        (
            "by_iteration",
            "Mean over the runs at each iteration, with the 95 % interval over trainings and test "
            f"{outcomes.noun}s. An early iteration may matter more than a late one.",
            partial(draw_by_iteration, outcomes),
        ),
    ]
    if changed_nothing(outcomes):  # there is nothing to see
        drawings = [(name, caption, nothing) for name, caption, _ in drawings]
    return list(page_figures(folder, drawings).values())


def _html(outcomes: Outcomes, figures: list[PageFigure]) -> str:
    environment = page_environment()
    environment.filters.update(whole=whole, digits_of=_digits_of)
    compared = list(comparisons(outcomes).values())
    runs = counted(len(outcomes.runs), "run")
    everything = [one for found in outcomes.runs.values() for one in found]
    return environment.get_template("intervention.html.j2").render(
        outcomes=outcomes,
        figures=figures,
        headline=headline(outcomes),
        lead=lead(outcomes),
        compared=compared,
        is_single=bool(compared) and len(compared[0].rounds) == 1,
        scores_of=" and ".join(dict.fromkeys(one.scores_of for one in everything)),
        steps=_steps(outcomes),
        scope=f"{runs} · {counted(len(everything), 'iteration')} · {', '.join(outcomes.runs)}",
    )


def _steps(outcomes: Outcomes) -> str:
    """Return a sentence on optimizer steps, which fewer records may make fewer."""
    steps = [one.steps for _, one in outcomes.compared]
    if not steps:
        return ""
    means = {way: sum(one[way] for one in steps) / len(steps) for way in ("all", "without_negatives", "random_drop")}
    if len(set(means.values())) == 1:
        return f"Each way made {whole(means['all'])} optimizer steps per iteration."
    return (
        f"Fewer records make fewer optimizer steps: {whole(means['all'])} per iteration with all records, "
        f"{whole(means['without_negatives'])} without the negatives and {whole(means['random_drop'])} after the random "
        "drop. So the random drop is the control, and not the training on all records."
    )


def _digits_of(value: float, estimate: Estimate) -> str:
    return in_digits_of(estimate, value)
