"""What the update kept and what it dropped, by label and by the sign of the advantage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ippo_lightning.report.display import percent
from ippo_lightning.report.evidence import LABELS
from ippo_lightning.report.ranks import ranked_episodes
from ippo_lightning.report.records import EpisodeRow, Method

POSITIVE, NEGATIVE, OTHER_SIGN, ALL = "advantage > 0", "advantage < 0", "advantage 0 or unknown", "all"
"""Columns of the table. The sign decides what an update does: it makes a response more likely, or less likely."""
ALL_LABELS = "all labels"
NO_LABEL = "no label"
REST = "other labels"
_MOST_LABELS = 12
_FEWEST = 10
"""Episodes in a cell that a sentence names; the fraction of fewer is chance."""


@dataclass(frozen=True)
class KeptCell:
    """The episodes of one label with one sign of the advantage."""

    count: int
    kept: float
    """Fraction that the update used, in [0, 1]."""
    median_place: float | None
    """Median place of the scores within their iterations, 0 lowest and 1 highest; None without scores."""


@dataclass(frozen=True)
class KeptTable:
    """The kept fraction by label and by the sign of the advantage."""

    columns: tuple[str, ...]
    rows: dict[str, dict[str, KeptCell]]
    """Label to column to cell, without empty cells; the last row contains all labels."""


def kept_table(method: Method) -> KeptTable | None:
    """Count what was kept among the recorded episodes.

    Args:
        method: all its finished runs count together.

    Returns:
        The table without empty columns; None if no episode was dropped.
    """
    # An episode without a recorded weight would count as dropped.
    episodes = [episode for episode in method.episodes if episode.kept is not None]
    if all(episode.kept for episode in episodes):
        return None
    # By identity: two episodes may have equal texts and numbers in different iterations.
    places = {id(one.episode): one.place for one in ranked_episodes(method)}
    names = _row_names(episodes)
    cells: dict[tuple[str, str], list[EpisodeRow]] = defaultdict(list)
    for episode in episodes:
        for row in (names[episode.label], ALL_LABELS):
            for column in (_sign(episode), ALL):
                cells[row, column].append(episode)
    columns = tuple(name for name in (POSITIVE, NEGATIVE, OTHER_SIGN, ALL) if (ALL_LABELS, name) in cells)
    # Without labels, the one row of all episodes is enough.
    rows = [*dict.fromkeys(names.values()), ALL_LABELS] if set(names) != {""} else [ALL_LABELS]
    return KeptTable(
        columns,
        {row: {c: _cell(cells[row, c], places) for c in columns if (row, c) in cells} for row in rows},
    )


def kept_words(table: KeptTable) -> list[str]:
    """Return the table in sentences: both signs, then the labels that were kept most and least.

    Args:
        table: from `kept_table`.
    """
    total = table.rows[ALL_LABELS]
    sentences = [f"The update used {percent(total[ALL].kept)} % of the {total[ALL].count:,} recorded episodes."]
    if POSITIVE in total and NEGATIVE in total:
        sentences.append(
            f"It used {percent(total[POSITIVE].kept)} % of those with a positive advantage, which it makes more likely,"
            f" and {percent(total[NEGATIVE].kept)} % of those with a negative advantage, which it makes less likely."
        )
    named = {
        f"{label.replace('_', ' ')} with {column}": cell
        for label, cells in table.rows.items()
        for column, cell in cells.items()
        if label != ALL_LABELS and column in (POSITIVE, NEGATIVE) and cell.count >= _FEWEST
    }
    ordered = sorted(named.items(), key=lambda item: item[1].kept)
    if len(ordered) > 1 and ordered[0][1].kept < ordered[-1][1].kept:
        (least, low), (most, high) = ordered[0], ordered[-1]
        sentences.append(
            f"Kept most: {most} ({percent(high.kept)} %, n = {high.count:,}). "
            f"Kept least: {least} ({percent(low.kept)} %, n = {low.count:,})."
        )
    return sentences


def _row_names(episodes: Sequence[EpisodeRow]) -> dict[str, str]:
    """Return the row of each label: known labels first, then by frequency; the rarest share one row."""
    found = [label for label, _ in Counter(episode.label for episode in episodes).most_common()]
    # A fixed order of the known labels makes the tables of two methods comparable row by row.
    ordered = [label for label in LABELS if label in found] + [label for label in found if label not in LABELS]
    return {label: (label or NO_LABEL) if place < _MOST_LABELS else REST for place, label in enumerate(ordered)}


def _sign(episode: EpisodeRow) -> str:
    if not episode.advantage:
        return OTHER_SIGN
    return POSITIVE if episode.advantage > 0 else NEGATIVE


def _cell(members: Sequence[EpisodeRow], places: dict[int, float]) -> KeptCell:
    found = [places[id(episode)] for episode in members if id(episode) in places]
    return KeptCell(
        count=len(members),
        kept=sum(bool(episode.kept) for episode in members) / len(members),
        median_place=median(found) if found else None,
    )
