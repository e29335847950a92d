"""What `ippo replay` prints: where a step breaks, its modules and its rows, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import chop_cells, set_cell_size

from ippo_lightning.modules import Diagnosis
from ippo_lightning.modules.pass_numbers import First, PassNumbers, Place
from ippo_lightning.storage.untrusted_text import visible_text

WIDTH = 80
_NAME = 40  # cells of a module's name
_MOST_ROWS = 20
_MOST_MODULES = 40  # a table up to this length is shown whole
_AROUND = 6  # modules before and after one that matters


def replay_lines(
    head: str, found: Diagnosis, numbers: PassNumbers, *, step: Mapping[str, Any], origin: str, all_modules: bool
) -> list[str]:
    """Return the lines, without a character that controls a terminal.

    Args:
        head: what was repeated, and how.
        found: in this repetition.
        numbers: of its last pass.
        step: from `read_failed_step`; its texts may be those of a model.
        origin: where the parameters come from, if not from the step's file.
        all_modules: whether every module is listed.
    """
    number, passes = len(found.losses) - 1, len(step["calls"])
    said = [head, *([origin] if origin else [])]
    said += [f"shown: pass {number}, counted from 0, of {passes}; its loss is {found.losses[-1]:.6g}", str(found)]
    said.append(_said("forward", "output", numbers.forward))
    # Behind a forward that is not finite, every gradient is NaN, and the first of them tells nothing.
    is_behind = numbers.forward.seen is not None
    said.append(
        "backward: it begins with what the forward broke"
        if is_behind
        else _said("backward", "input's gradient", numbers.backward)
    )
    if found.failed_pass is None and step["failed_pass"] is not None:
        said.append(f"in the run, pass {step['failed_pass']} was not finite: device or precision makes the difference")
    lines = [line for text in said for line in _wrapped(text)]
    lines += ["", *module_lines(numbers, all_modules=all_modules)]
    rows = row_lines(found, step)
    return [*lines, "", *rows] if rows else lines


def _said(direction: str, what: str, first: First) -> str:
    if first.breaks is not None:
        return f"{direction}: {first.breaks.name} ({first.breaks.kind}) is the first to break, its {what} is not finite"
    if first.seen is not None:
        return f"{direction}: first seen at {first.seen.name} ({first.seen.kind}); it comes from outside of all modules"
    return f"{direction}: every module is finite"


def module_lines(numbers: PassNumbers, *, all_modules: bool) -> list[str]:
    """Return the table of modules, in the order of the forward.

    Args:
        numbers: of a pass.
        all_modules: False leaves out what is far from the first number that is not finite, if there are many.
    """
    places = list(numbers.places.values())
    marks = _marks(numbers)
    shown = set(range(len(places)))
    if not all_modules and len(places) > _MOST_MODULES:
        important = [row for row, place in enumerate(places) if place.name in marks] or [len(places) - 1]
        near = [range(row - _AROUND, row + _AROUND + 1) for row in important]
        shown &= {row for span in near for row in span}
    stem = _stem([place.name for place in places])
    lines = _wrapped(f"A dot at the beginning of a name stands for {stem}.") if stem else []
    lines += [f"{'':{_NAME}}{'forward':>18}{'backward':>18}", _columns("module", "input", "output", "output", "input")]
    hidden: list[Place] = []
    for row, place in enumerate(places):
        if row not in shown:
            hidden.append(place)
            continue
        name = place.name.removeprefix(stem) if place.name.startswith(f"{stem}.") else place.name
        lines += [*_gap(hidden), _module_line(place, name, marks.get(place.name, ""))]
        hidden = []
    return [*lines, *_gap(hidden)]


def _marks(numbers: PassNumbers) -> dict[str, str]:
    """Return what stands behind the module that matters, by name: F forward, B backward."""
    # One direction only: behind a forward that is not finite, every gradient is NaN.
    letter, first = ("F", numbers.forward) if numbers.forward.seen is not None else ("B", numbers.backward)
    place = first.breaks or first.seen
    return {} if place is None else {place.name: f"<{letter}"}


def _module_line(place: Place, name: str, mark: str) -> str:
    cells = [place.input, place.output, place.output_gradient, place.input_gradient]
    shown = ["-" if cell is None else str(cell) for cell in cells]
    return f"{_columns(_plain(name), *shown)} {mark}".rstrip()


def _gap(hidden: Sequence[Place]) -> list[str]:
    if not hidden:
        return []
    broken = sum(not place.is_finite for place in hidden)
    return [f"... {len(hidden)} modules, {f'{broken} of them not finite' if broken else 'all finite'}"]


def _columns(name: str, *cells: str) -> str:
    # The end of a name tells the module, its beginning the model.
    short = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
    return set_cell_size(short, _NAME) + "".join(f"{cell:>9}" for cell in cells)


def _stem(names: Sequence[str]) -> str:
    """Return the parts that the names of all innermost modules begin with, without the last dot."""
    inner = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    parts = [name.split(".")[:-1] for name in inner]
    same = 0
    while parts and min(map(len, parts)) > same and len({entry[same] for entry in parts}) == 1:
        same += 1
    return ".".join(parts[0][:same]) if parts else ""


def row_lines(found: Diagnosis, step: Mapping[str, Any]) -> list[str]:
    """Return the table of rows of the pass that fails; of many, those that break it first.

    Args:
        found: in this repetition.
        step: from `read_failed_step`.
    """
    # The texts are of the pass that failed in the run.
    texts = step["texts"] if found.failed_pass == step["failed_pass"] else []
    rows = sorted(range(len(found.row_losses)), key=lambda row: row not in found.rows)[:_MOST_ROWS]
    lines = []
    for row in sorted(rows):
        pair = texts[row] if row < len(texts) else ()
        text = " | ".join(_plain(str(part)) for part in pair)
        line = f"{row:>4}  {found.row_losses[row]:>10.3g}  {found.rows.get(row, '-'):<9} {text}"
        lines.append(set_cell_size(line, WIDTH).rstrip())
    left = len(found.row_losses) - len(rows)
    lines += [f"... {left} more rows"] if left else []
    return [f"{'row':>4}  {'loss':>10}  {'breaks':<9} prompt | response", *lines] if lines else []


def _wrapped(text: str) -> list[str]:
    # Again by cells: a character of some scripts takes two.
    return [part for line in textwrap.wrap(_plain(text), width=WIDTH) for part in chop_cells(line, WIDTH)]


def _plain(text: str) -> str:
    """Return a text on one line, with every character that could control a terminal replaced."""
    return visible_text(text).replace("\n", "")
