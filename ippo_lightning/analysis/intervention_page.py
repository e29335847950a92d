"""The files of an intervention: numbers, figures, and one page that contains them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ippo_lightning.analysis.intervention_figures import draw_boxes, draw_by_iteration, draw_trainings
from ippo_lightning.analysis.intervention_summary import Outcomes, as_json, comparisons, headline, in_digits_of, lead
from ippo_lightning.analysis.pages import embedded, page_environment
from ippo_lightning.analysis.training_differences import Estimate
from ippo_lightning.report.display import counted, whole
from ippo_lightning.report.rendering import Figure
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import FIGURES, RunFolder

PAGE, NUMBERS = "intervention.html", "intervention.json"
_DRAWN: dict[str, tuple[Callable[[Outcomes, Path], str | None], str]] = {
    "trainings": (
        draw_trainings,
        "Mean of each training (dot) and of each way to train (diamond); dotted: before the iteration. The dots of one "
        "way differ by the order of the minibatches alone, and those of the random drop also by what was dropped.",
    ),
    "boxes": (
        draw_boxes,
        "One dot per iteration; box: quartiles and median; diamond and bar above it: the mean and its 95 % interval "
        "over iterations. If the scores matter, the difference to the random drop lies right of zero.",
    ),
    "by_iteration": (
        draw_by_iteration,
        "Mean over the runs at each iteration, with the 95 % interval over trainings and test episodes. An early "
        "iteration may matter more than a late one.",
    ),
}
"""By name: how the figure is drawn, and its caption."""


def write_intervention(outcomes: Outcomes, folder: Path) -> Path:
    """Write intervention.json, figures/*.png and intervention.html; return the path of the page.

    Args:
        outcomes: of at least one iteration.
        folder: it exists; the files of an earlier page are replaced.
    """
    RunFolder(folder).write(NUMBERS, as_json(outcomes))
    figures = _figures(outcomes, folder / FIGURES)
    write_text_whole(folder / PAGE, _html(outcomes, figures))
    return folder / PAGE


def _figures(outcomes: Outcomes, folder: Path) -> list[Figure]:
    folder.mkdir(exist_ok=True)
    figures = []
    for name, (draw, caption) in _DRAWN.items():
        path = folder / f"{name}.png"
        alternative = draw(outcomes, path)
        if alternative is None:
            path.unlink(missing_ok=True)  # left by an earlier page
            continue
        figures.append(embedded(name, caption, alternative, path))
    return figures


def _html(outcomes: Outcomes, figures: list[Figure]) -> str:
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
