"""From the axes of a comparison to its columns."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ippo_lightning.cli.axis_values import axis_files
from ippo_lightning.cli.experiment_paths import DEFAULT_BASE, FOLDERS, axis_names, base_of_task
from ippo_lightning.cli.settings import CompareSettings, MethodSettings
from ippo_lightning.errors import UserError
from ippo_lightning.storage.method_names import METHOD_NAME, is_method_name

_PARTS = ("base", "task", "model")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a comparison: a run for each seed.

    Args:
        name: of its folder.
        title: as the table shows it.
        method: by this name `baseline` and `featured` refer to it.
        group: base, task and model; a column is compared with the baseline of its own group.
        config: YAML files, later ones win.
        overrides: dotted keys and values on top of them.
        command: see `MethodSettings`.
    """

    name: str
    title: str
    method: str
    group: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command: Literal["fit", "evaluate"] = "fit"


def columns_of(settings: CompareSettings) -> list[Column]:
    """Return all columns: those given by their files, then every combination of the axes.

    Raises:
        UserError: a name cannot be a folder, two columns have one name, or an axis, `baseline`, `featured` or `titles`
            names nothing.
    """
    columns = [_given(name, method) for name, method in settings.methods.items()]
    columns += _combinations(settings) if settings.axes else []
    names = [column.name for column in columns]
    # two columns of one name would write their runs into the same folders
    for name in names:
        # the name becomes a folder, and the report refuses what could lead out of the comparison
        if not is_method_name(name):
            raise UserError(f"methods: {name!r} is not the name of a folder; expected {METHOD_NAME}")
        if names.count(name) > 1:
            raise UserError(f"methods: '{name}' is also a column of the axes; expected another name")
    known = sorted({*names, *(column.method for column in columns)})
    references = [("baseline", settings.baseline), ("featured", settings.featured)]
    references += [("titles", title) for title in settings.titles]
    # a misspelt method would not fail later: the table would only lack its title or its difference
    for key, wanted in references:
        if wanted is not None and wanted not in known:
            near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
            raise UserError(f"{key}: '{wanted}' is not a method of this comparison; {hint}")
    return columns


def baseline_of(column: Column, columns: list[Column], *, baseline: str | None) -> str | None:
    """Return the name of the column that a column is compared with; None for the baseline itself, or without one.

    A method joined from several files adds to the first of them: `grpo+ippo` is compared with `grpo`, if that is a
    column too.

    Args:
        column: of `columns`.
        columns: all of the comparison.
        baseline: a method, which means the one of the same task and model, or the name of a column.
    """
    if baseline is None or baseline in (column.method, column.name):
        return None
    first, *added = column.method.split("+")
    if added and any(other.method == first and other.group == column.group for other in columns):
        baseline = first
    same_group = [other for other in columns if baseline in (other.method, other.name) and other.group == column.group]
    # a column that is given by its files belongs to no group, so its name counts in all of them
    found = same_group or [other for other in columns if other.name == baseline]
    return found[0].name if found and found[0].name != column.name else None


def is_featured(column: Column, *, featured: str | None) -> bool:
    """Return whether the report is about this column."""
    return featured is not None and featured in (column.method, column.name)


def _given(name: str, method: MethodSettings) -> Column:
    return Column(
        name=name,
        title=method.title or name,
        method=name,
        config=tuple(method.config),
        overrides=method.overrides,
        command=method.command,
    )


def _combinations(settings: CompareSettings) -> Iterator[Column]:
    axes = settings.axes
    several = any(len(axes.get(part, [])) > 1 for part in _PARTS)
    # an axis that is left out gets one empty name: a product with an empty list has no combination
    chosen = [axes.get(part) or [""] for part in _PARTS]
    for given, task, model in itertools.product(*chosen):
        base = given or (base_of_task(task) if task else DEFAULT_BASE)
        group = tuple(part for part in (base if len(chosen[0]) > 1 else "", task, model) if part)
        # without methods the base alone is the method, as in the name of a run's folder
        methods = axes.get("method") or [base]
        if settings.start in methods:
            raise UserError(f"start: '{settings.start}' is also a method of the axes; expected another name")
        for method in [*([settings.start] if settings.start else []), *methods]:
            is_start = method == settings.start
            title = settings.titles.get(method, method)
            yield Column(
                name=".".join([*group, method]) if several else method,
                title=f"{', '.join(group)}: {title}" if several else title,
                method=method,
                group=group if several else (),
                # the start is what base, task and model name, before any method
                config=tuple(_files(base=base, task=task, model=model, method="" if is_start else method)),
                command="evaluate" if is_start else "fit",
            )


def _files(**names: str) -> Iterator[str]:
    """Yield the files of one combination, in the order in which they apply."""
    for axis in FOLDERS:
        name = names[axis]
        # a file of that name in methods/ comes first: it may add a callback to the base of the same name
        is_base_alone = axis == "method" and name == names["base"] and name not in axis_names("method")
        if name and not is_base_alone:
            yield from map(str, axis_files(axis, name, base=names["base"]))
