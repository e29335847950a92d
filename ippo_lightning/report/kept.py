"""What the update kept and what it dropped, by label and by the sign of the advantage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ippo_lightning.report.contrast import Contrast, contrast_words, kept_contrast
from ippo_lightning.report.display import counted, percent
from ippo_lightning.report.evidence import LABELS
from ippo_lightning.report.ranks import ranked_episodes
from ippo_lightning.report.records import EpisodeRow, Method

POSITIVE, NEGATIVE, OTHER_SIGN, ALL = "advantage > 0", "advantage < 0", "advantage 0 or unknown", "all"
"""Columns of the table. The sign decides what an update does: it makes a response more likely, or less likely."""
_OWN_TITLES = {"all": "all labels", "none": "no label", "rest": "other labels"}
_MOST_LABELS = 12
Kind = Literal["label", "none", "rest", "all"]


@dataclass(frozen=True)
class KeptCell:
    """The episodes of one label with one sign of the advantage."""

    count: int
    kept: float
    """Fraction that the update used, in [0, 1]."""
    median_place: float | None
    """Median place of the scores within their iterations, 0 lowest and 1 highest; None without scores."""


@dataclass(frozen=True)
class KeptRow:
    """The episodes of one label, or a row of the table's own."""

    kind: Kind
    """Not only the title tells which row it is: a grader may call its own labels `all labels` or `no label`."""
    label: str
    """As the grader gave it; empty for a row of the table's own."""
    cells: Mapping[str, KeptCell]
    """By column, without empty cells."""

    @property
    def title(self) -> str:
        """The name of the row; a label that is called like a row of the table's own is in quotation marks."""
        if self.kind != "label":
            return _OWN_TITLES[self.kind]
        shown = self.label.replace("_", " ")
        return f"“{shown}”" if shown.strip().lower() in _OWN_TITLES.values() else shown


@dataclass(frozen=True)
class KeptTable:
    """The kept fraction by label and by the sign of the advantage."""

    columns: tuple[str, ...]
    rows: tuple[KeptRow, ...]
    """The last row contains all labels."""
    contrast: Contrast | None
    """The cells whose kept fractions surely differ most; None without two cells to compare."""

    @property
    def total(self) -> Mapping[str, KeptCell]:
        """The cells of all labels."""
        return self.rows[-1].cells


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
    columns = tuple(name for name in (POSITIVE, NEGATIVE, OTHER_SIGN) if any(_sign(e) == name for e in episodes))
    groups = _groups(episodes)
    # Without labels, the one row of all episodes is enough.
    groups = groups if {kind for kind, _ in groups} != {"none"} else {}
    rows = []
    for (kind, label), members in [*groups.items(), (("all", ""), episodes)]:
        by_sign = {name: [e for e in members if _sign(e) == name] for name in columns}
        cells = {name: _cell(found, places) for name, found in {**by_sign, ALL: members}.items() if found}
        rows.append(KeptRow(kind, label, cells))
    compared = {
        f"{row.title}, {column}": [e for e in members if _sign(e) == column]
        for row, members in zip(rows, groups.values(), strict=False)
        for column in (POSITIVE, NEGATIVE)
    }
    return KeptTable((*columns, ALL), tuple(rows), kept_contrast(compared))


def kept_words(table: KeptTable) -> list[str]:
    """Return the table in sentences: both signs, then the surest difference between two cells.

    Args:
        table: from `kept_table`.
    """
    total = table.total
    sentences = [
        f"The update used {percent(total[ALL].kept)} % of the {counted(total[ALL].count, 'recorded episode')}."
    ]
    if POSITIVE in total and NEGATIVE in total:
        sentences.append(
            f"It used {percent(total[POSITIVE].kept)} % of those with a positive advantage, which it makes more likely,"
            f" and {percent(total[NEGATIVE].kept)} % of those with a negative advantage, which it makes less likely."
        )
    # Without labels, both signs are compared above and there is no more to tell.
    return [*sentences, *(contrast_words(table.contrast) if len(table.rows) > 1 else [])]


def _groups(episodes: Sequence[EpisodeRow]) -> dict[tuple[Kind, str], list[EpisodeRow]]:
    """Return the episodes of each row: known labels first, then by frequency; the rarest share one row."""
    found = [label for label, _ in Counter(episode.label for episode in episodes).most_common()]
    # A fixed order of the known labels makes the tables of two methods comparable row by row.
    ordered = [label for label in LABELS if label in found] + [label for label in found if label not in LABELS]
    rows: dict[str, tuple[Kind, str]] = {
        label: ("rest", "") if place >= _MOST_LABELS else ("label", label) if label else ("none", "")
        for place, label in enumerate(ordered)
    }
    groups: dict[tuple[Kind, str], list[EpisodeRow]] = {row: [] for row in rows.values()}
    for episode in episodes:
        groups[rows[episode.label]].append(episode)
    return groups


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
