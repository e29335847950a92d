"""From the rows of sources to questions: what does not fit is an error or is left out, and the log tells."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.first_rank import is_first_rank
from ippo_lightning.tasks.questions.answer_kinds import ANSWER_KINDS
from ippo_lightning.tasks.questions.columns import Cells, read_columns
from ippo_lightning.tasks.questions.layouts import LAYOUTS
from ippo_lightning.tasks.questions.sources import Source
from ippo_lightning.tasks.questions.splits import Question, question_key, unique
from ippo_lightning.tasks.questions.tables import table_rows

logger = logging.getLogger(__name__)
_MOST_TRIED = 1000
"""Rows that are read behind one that does not fit, to see whether any fits."""
_MOST_CHARACTERS = 120


def read_sources(sources: Sequence[Source], *, field: str, max_characters: int | None) -> list[Question]:
    """Return the questions of sources, each once, at its first place.

    Args:
        sources: one after the other.
        field: the user's setting, for messages.
        max_characters: questions and responses that are longer are left out; None for no limit.

    Raises:
        UserError: a source cannot be read, a row does not fit where that is refused, or nothing is left.
    """
    reasons: list[str] = []
    found: list[Question] = []
    for source in sources:
        found += _read(source, field=field, max_characters=max_characters, reasons=reasons)
    kept, doubles = unique(found)
    if doubles:
        first = {question.key: question.cells.answer for question in kept}
        differ = sum(question.cells.answer != first[question.key] for question in doubles)
        said = f", {differ} of them with another answer" if differ else ""
        log(f"{field}: {len(doubles)} of {len(found)} questions come again{said}; the first one counts")
    if not kept:
        why = f": {reasons[0].removeprefix(f'{field}: ')}" if reasons else "; expected at least one"
        raise UserError(f"{field}: {', '.join(source.path for source in sources)} gave no rows{why}")
    return kept


def log(message: str) -> None:
    """Write a warning to the log, on one rank."""
    if is_first_rank():
        logger.warning(message)


def fitting(source: Source, *, field: str) -> tuple[list[Question], list[str]]:
    """Return the rows of a source that fit, and for each other row its place and the reason.

    Raises:
        UserError: the source cannot be read, or a row does not fit and `unfit_rows` is `refuse`.
    """
    rows = table_rows(_with_column_names(source), field=field)
    found: list[Question] = []
    unfit: list[str] = []
    for place, row in rows:
        read = _question_or_reason(row, source, place)
        if isinstance(read, Question):
            found.append(read)
        elif source.unfit_rows == "drop":
            unfit.append(read)
        else:
            raise UserError(f"{read}; {_remedy(read, row, source, fits=bool(found) or _any_fits(rows, source))}")
    if unfit and not found:
        unfit[0] += f"; {_remedy(unfit[0], row, source, fits=False)}"
    return found, unfit


def _question_or_reason(row: Mapping[str, Any], source: Source, place: str) -> Question | str:
    """Return the question of a row, or why it does not fit."""
    try:
        return _question(row, source, place)
    except UserError as error:
        return str(error)


def _any_fits(rows: Iterator[tuple[str, Mapping[str, Any]]], source: Source) -> bool:
    """Return whether one of the next rows fits; True if they cannot be read, which is another mistake."""
    try:
        return any(isinstance(_question_or_reason(row, source, ""), Question) for _, row in islice(rows, _MOST_TRIED))
    except UserError:
        return True


def _remedy(reason: str, row: Mapping[str, Any], source: Source, *, fits: bool) -> str:
    """Return what to do about a row that does not fit.

    Args:
        reason: why it does not.
        row: that row.
        source: of the row.
        fits: whether another row fits; if none does, the columns are wrong, and nothing would be left.
    """
    if fits:
        return "correct it, or set unfit_rows: drop"
    wrong = "columns" if source.layout == "columns" else f"layout: {source.layout}"
    names = ", ".join(map(str, row))[:_MOST_CHARACTERS]
    return f"no row fits; correct {wrong}{'' if names in reason else f', the columns there are {names}'}"


def _read(source: Source, *, field: str, max_characters: int | None, reasons: list[str]) -> Iterator[Question]:
    """Yield the questions of one source, log how many rows are left out, and add why to the reasons."""
    found, unfit = fitting(source, field=field)
    if unfit:
        reasons.append(unfit[0])
        log(f"{field}: {len(unfit)} of {len(found) + len(unfit)} rows of {source.path} do not fit: {unfit[0]}")
    short = [question for question in found if max_characters is None or _length(question.cells) <= max_characters]
    if len(short) < len(found):
        log(
            f"task.max_characters: {max_characters} leaves out {len(found) - len(short)} of {len(found)} questions of "
            f"{source.path}"
        )
    yield from short


def _question(row: Mapping[str, Any], source: Source, place: str) -> Question:
    layout = LAYOUTS.get(source.layout)
    if layout is not None:
        cells = layout.read(row, place)
    else:
        assert source.columns is not None, "checked by Source"
        cells = read_columns(row, source.columns, place)
    kind = source.answer_kind or (layout.answer_kind if layout is not None else None)
    answer = cells.answer
    if answer is not None and kind is not None:
        answer = ANSWER_KINDS[kind].reference(answer)
        if answer is None:
            raise UserError(f"{place}: answer {cells.answer!r:.40} does not fit answer_kind: {kind}")
    return Question(
        cells=replace(cells, answer=answer),
        place=place,
        answer_kind=kind,
        weight=source.weight,
        key=question_key(cells.question, cells.messages),
    )


def _with_column_names(source: Source) -> Source:
    """Return the source with the names of its columns, if its layout is one of files without a first line of names."""
    layout = LAYOUTS.get(source.layout)
    names = layout.column_names if layout is not None and source.path.endswith(".tsv") else None
    if source.column_names is not None or names is None:
        return source
    return replace(source, column_names=list(names))


def _length(cells: Cells) -> int:
    texts = [cells.question, cells.response or "", *(str(turn["content"]) for turn in cells.messages)]
    return max(len(text) for text in texts)
