"""The table of `ippo evaluate RUN ...`: numbers with intervals, and differences to the first run; 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ippo_lightning.run.evaluation_numbers import Difference, Number, Ratios
from ippo_lightning.storage.metric_names import shown_metric
from ippo_lightning.storage.run_folder import EVALUATION, START, JsonObject
from ippo_lightning.storage.untrusted_text import visible_text

_SIDE_BY_SIDE = 2
"""Runs in one table: a third one does not fit 80 columns."""
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Column:
    """One evaluation.

    Args:
        name: of the run, in the table.
        run: its folder.
        folder: of the evaluation.
        settings: what the responses depend on.
        is_finished: whether the run has ended.
        prompts: each with its right answer, in the order of the split.
        ratios: of each number its sums over prompts.
        numbers: of each number its value and its interval.
        size: what was measured and how, in words.
        unit: what `prompts` are: those of texts, or episodes in an environment.
    """

    name: str
    run: Path
    folder: Path
    settings: JsonObject
    is_finished: bool
    prompts: Sequence[tuple[str, str | None]]
    ratios: Ratios
    numbers: Mapping[str, Number]
    size: str
    unit: Literal["prompts", "episodes"] = "prompts"


def print_evaluations(
    columns: Sequence[Column], found: Sequence[Mapping[str, Difference]], *, with_pass_at_1: bool = False
) -> None:
    """Print what was evaluated, the table, the differences to the first run, and where the files are.

    Args:
        columns: at least one.
        found: the differences of each but the first to the first.
        with_pass_at_1: whether to show pass@1, which is the exact match.
    """
    console = Console()
    hidden = () if with_pass_at_1 else ("pass_at_1",)
    found = [{name: value for name, value in each.items() if name not in hidden} for each in found]
    lines = [line for column in columns for line in _heading(column)]
    for start in range(0, len(columns), _SIDE_BY_SIDE):
        part = columns[start : start + _SIDE_BY_SIDE]
        names = list(dict.fromkeys(name for column in part for name in column.numbers if name not in hidden))
        rows = [(name, [_cell(column.numbers.get(name)) for column in part]) for name in names]
        lines.append(_table("", [column.name for column in part], rows))
    for start in range(0, len(found), _SIDE_BY_SIDE):
        others = list(zip(columns[1:], found, strict=True))[start : start + _SIDE_BY_SIDE]
        lines += _differences(columns[0], others)
    lines += [f"Results: {column.folder / EVALUATION}" for column in columns]
    for line in lines:
        # Without markup, and whole: a path that is broken or loses its brackets cannot be opened.
        if isinstance(line, str):
            console.print(visible_text(line), soft_wrap=True, markup=False, highlight=False)
        else:
            console.print(line)


def _heading(column: Column) -> list[str | Table]:
    model: Any = column.settings["model"]
    unfinished = "" if column.is_finished or model["iteration"] is None else "; run not ended"
    iteration = "" if model["iteration"] is None else f" (iteration {model['iteration']}{unfinished})"
    began = model["began_with"] or "a new model"
    name = f"start of {column.run}, {began}" if model["name"] == START else model["name"]
    return [
        f"{_short(column.name, keep_end=True)}: {name}{iteration}",
        f"  {column.settings['split']}: {column.size}",
    ]


def _differences(first: Column, others: Sequence[tuple[Column, Mapping[str, Difference]]]) -> list[str | Table]:
    lines: list[str | Table] = [
        f"no differences of {_short(column.name, keep_end=True)}: the first run has none of its {column.unit}"
        for column, found in others
        if not found
    ]
    paired = [(column, found) for column, found in others if found]
    names = list(dict.fromkeys(name for _, found in paired for name in found))
    if names:
        rows = [(name, [_cell(found.get(name), sign="+") for _, found in paired]) for name in names]
        counts = ", ".join(str(next(iter(found.values()))["prompts"]) for _, found in paired)
        title = f"minus {_short(first.name, keep_end=True)}, over the same {first.unit} ({counts})"
        lines.append(_table(title, [column.name for column, _ in paired], rows))
    return lines


def _table(title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    # As Text, because rich reads brackets in a plain string as a style.
    table = Table(
        title=Text(visible_text(title)) if title else None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    table.add_column("")
    for name in names:
        table.add_column(Text(_short(name, keep_end=True)), justify="right", overflow="fold")
    for name, cells in rows:
        table.add_row(Text(_short(shown_metric(name))), *(Text(cell) for cell in cells))
    return table


def _short(name: str, *, keep_end: bool = False) -> str:
    """Return a name of at most 24 characters, on one line, without what could control the terminal."""
    if len(name) > _LONGEST_NAME:
        name = f"…{name[1 - _LONGEST_NAME :]}" if keep_end else f"{name[: _LONGEST_NAME - 1]}…"
    return visible_text(name).replace("\n", " ")


def _cell(number: Number | None, *, sign: str = "") -> str:
    """Return a number and its interval.

    Example:
        >>> _cell({"value": 0.5, "interval": [0.25, 0.75]})
        '0.500 [0.250, 0.750]'
    """
    if number is None or number["value"] is None:
        return "-"
    decimals = 3 if abs(number["value"]) < 10 else 1
    value, interval = f"{number['value']:{sign}.{decimals}f}", number["interval"]
    return value if interval is None else f"{value} [{', '.join(f'{end:{sign}.{decimals}f}' for end in interval)}]"
