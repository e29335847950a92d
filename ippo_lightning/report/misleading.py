"""How well a selection tells the episodes whose update goes the wrong way, by the labels of an exact grader.

An update makes a response with a positive advantage more likely, and one with a negative advantage less likely. It
misleads if the first is not faithful, or if the second is. A reward for the right answer cannot see this; the grader of
a task with exact labels can. So each selection can be judged as a classifier of misleading episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import fmean
from typing import TypedDict

from scipy import stats

from ippo_lightning.report.evidence import LABELS
from ippo_lightning.report.records import EpisodeRow, Method, Run
from ippo_lightning.report.summary import seed_interval

_FAITHFUL = "faithful"
_NO_SELECTION = ("truncated", "equal rewards")
"""Reasons of a drop that no selection has decided: `update.mask_truncated`, and dynamic sampling."""


class Detection(TypedDict):
    """How well dropping finds misleading episodes; means over seeds, fractions in [0, 1]."""

    misleading: float
    """Fraction of the judged episodes: the precision of dropping at random."""
    dropped: float
    """Fraction of the judged episodes: the recall of dropping at random."""
    advantage_0: float
    """Fraction of the recorded episodes that is not judged because its advantage is 0: an update does nothing there."""
    precision: float | None
    """Fraction of the dropped episodes that mislead; None if none was dropped."""
    recall: float | None
    """Fraction of the misleading episodes that were dropped."""
    dropped_auc: float | None
    """Area under the ROC curve of the decision alone: the mean of recall and specificity; 0.5 is chance."""
    score_auc: float | None
    """That of the scores: chance that a misleading episode has a lower one than another of its iteration."""
    intervals: dict[str, list[float] | None]
    """Of `precision`, `recall`, `dropped_auc` and `score_auc` over seeds."""


class Counts(TypedDict):
    """Of judged episodes."""

    misleading_dropped: int
    misleading_kept: int
    other_dropped: int
    other_kept: int


def is_misleading(episode: EpisodeRow) -> bool | None:
    """Return whether an update on the episode goes the wrong way; None if that is unknown.

    That is the case if its label or advantage does not tell, and for an episode that no selection has dropped, but the
    limit of its length or dynamic sampling.

    Args:
        episode: with a label of this library's exact graders and an advantage that is not 0.
    """
    if not episode.advantage or episode.label not in LABELS or _is_dropped_otherwise(episode):
        return None
    return (episode.advantage > 0) != (episode.label == _FAITHFUL)


def _is_dropped_otherwise(episode: EpisodeRow) -> bool:
    return any(factor == 0 and reason in _NO_SELECTION for reason, factor in episode.changes or ())


def detection(method: Method) -> Detection | None:
    """Return how well a method drops what misleads; None if nothing was dropped or no label is exact.

    Args:
        method: with recorded episodes.
    """
    by_seed, zeros = [], []
    for run in method.finished:
        episodes = _recorded(run)
        labels = {episode.label for episode in episodes} - {""}
        # A grader that only tells right from wrong has no label for unfaithful reasoning, and other labels beside ours
        # are those of another grader.
        if _FAITHFUL in labels and labels <= LABELS.keys():
            by_seed.append((counts_of(episodes), score_auc(episodes)))
            zeros.append(sum(episode.advantage == 0 for episode in episodes) / len(episodes))
    if not any(counts["misleading_dropped"] + counts["other_dropped"] for counts, _ in by_seed):
        return None
    rates = [rates_of(counts, auc=auc) for counts, auc in by_seed]
    names = ("precision", "recall", "dropped_auc", "score_auc")
    return {
        "misleading": fmean(rate["misleading"] or 0.0 for rate in rates),
        "dropped": fmean(rate["dropped"] or 0.0 for rate in rates),
        "advantage_0": fmean(zeros),
        "precision": _mean(rate["precision"] for rate in rates),
        "recall": _mean(rate["recall"] for rate in rates),
        "dropped_auc": _mean(rate["dropped_auc"] for rate in rates),
        "score_auc": _mean(rate["score_auc"] for rate in rates),
        "intervals": {name: seed_interval([rate[name] for rate in rates]) for name in names},
    }


def why_not_judged(method: Method) -> str:
    """Return in words why `detection` has nothing to tell of a method.

    Args:
        method: for which `detection` returned None.
    """
    episodes = [episode for run in method.finished for episode in _recorded(run)]
    if not episodes:
        return "recorded no episodes"
    dropped = [episode for episode in episodes if not episode.kept and not _is_dropped_otherwise(episode)]
    if not dropped:
        return "dropped no recorded episode"
    if all(episode.advantage == 0 for episode in dropped):
        return "each dropped episode has advantage 0"
    return "no dropped episode has both a label that tells and an advantage that is not 0"


def _recorded(run: Run) -> list[EpisodeRow]:
    return [episode for episode in run.episodes if episode.kept is not None]


def counts_of(episodes: Iterable[EpisodeRow]) -> Counts:
    """Count the judged episodes by what they are and what became of them.

    Args:
        episodes: those that `is_misleading` cannot judge do not count.
    """
    counts: Counts = {"misleading_dropped": 0, "misleading_kept": 0, "other_dropped": 0, "other_kept": 0}
    for episode in episodes:
        misleading = is_misleading(episode)
        if misleading is None:
            continue
        if misleading:
            counts["misleading_kept" if episode.kept else "misleading_dropped"] += 1
        else:
            counts["other_kept" if episode.kept else "other_dropped"] += 1
    return counts


def rates_of(counts: Counts, *, auc: float | None) -> dict[str, float | None]:
    """Return the rates of `Detection` of one run.

    Args:
        counts: from `counts_of`.
        auc: from `score_auc`.
    """
    dropped = counts["misleading_dropped"] + counts["other_dropped"]
    misleading = counts["misleading_dropped"] + counts["misleading_kept"]
    other = counts["other_dropped"] + counts["other_kept"]
    recall = _ratio(counts["misleading_dropped"], misleading)
    specificity = _ratio(counts["other_kept"], other)
    return {
        "misleading": _ratio(misleading, misleading + other),
        "dropped": _ratio(dropped, misleading + other),
        "precision": _ratio(counts["misleading_dropped"], dropped),
        "recall": recall,
        "dropped_auc": None if recall is None or specificity is None else (recall + specificity) / 2,
        "score_auc": auc,
    }


def dropped_auc_by_iteration(run: Run) -> dict[int, float]:
    """Return the area under the ROC curve of dropping, by iteration; without those that dropped nothing.

    Args:
        run: with recorded episodes, in the order of the iterations.
    """
    found = {}
    for iteration, members in groupby(run.episodes, key=lambda episode: episode.iteration):
        counts = counts_of(episode for episode in members if episode.kept is not None)
        auc = rates_of(counts, auc=None)["dropped_auc"]
        if auc is not None and counts["misleading_dropped"] + counts["other_dropped"]:
            found[iteration] = auc
    return found


def score_auc(episodes: Sequence[EpisodeRow]) -> float | None:
    """Return the area under the ROC curve of low scores for misleading episodes; None without scores or pairs.

    Args:
        episodes: of one run, in the order of the iterations. Scores are compared within an iteration only, because
            their scale may change; an iteration counts by its pairs.

    Source: the Mann-Whitney statistic over the number of pairs; a tie counts one half.
    """
    total, pairs = 0.0, 0
    for _, members in groupby(episodes, key=lambda episode: episode.iteration):
        scores: dict[bool, list[float]] = {True: [], False: []}
        for episode in members:
            misleading = is_misleading(episode)
            if misleading is not None and episode.score is not None:
                scores[misleading].append(episode.score)
        count = len(scores[True]) * len(scores[False])
        if count:
            total += float(stats.mannwhitneyu(scores[False], scores[True]).statistic)
            pairs += count
    return total / pairs if pairs else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
