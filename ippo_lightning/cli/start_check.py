"""Checks before anything is started: the run that a policy starts from, and the files of a new project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ippo_lightning.cli.axis_values import START_BASE
from ippo_lightning.cli.command_line import CommandLine, read_command_line
from ippo_lightning.cli.experiment_paths import DEFAULT_BASE, FOLDERS, packaged_root
from ippo_lightning.cli.quick_check import check_experiment
from ippo_lightning.cli.start_of_run import start_from_of
from ippo_lightning.cli.trust import check_trust, outside_names, search_working_folder
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import RunFolder

_ANY_DATA = ("--data=ippo_lightning.data.TextDataModule", "--data.init_args.task=arithmetic")


def require_start(line: CommandLine, *, within: Path) -> None:
    """Refuse a column of a comparison whose policy starts from a run that has left no model.

    Args:
        line: of the column.
        within: folder of the comparison; a run in it may be one of its own columns, which comes first.

    Raises:
        UserError: there is no such model; the line has the command that makes it.
    """
    start = start_from_of(line.layers)
    if start is None or Path(start).resolve().is_relative_to(within.resolve()):
        return
    model = RunFolder(start).model
    if any((model / name).is_file() for name in ("config.json", "adapter/adapter_config.json")):
        return
    exists = "has no model yet" if Path(start).is_dir() else "does not exist"
    raise UserError(f"model.policy.start_from: the run '{start}' {exists}; run this first: {_command(line, start)}")


def _command(line: CommandLine, start: str) -> str:
    axes = {folder: axis for axis, folder in FOLDERS.items()}
    parts = [part for part in line.parts if part is not None and axes.get(part.folder) in ("task", "model")]
    words = [f"--{axes[part.folder]} {part.stem}" for part in sorted(parts, key=lambda part: part.folder != "tasks")]
    return " ".join(["ippo fit", f"--base {START_BASE}", *words, f"--loop.run_dir {start}"])


def check_axes(options: Mapping[str, str | None], *, files: Sequence[Path]) -> None:
    """Refuse the axes of a new project if `ippo fit` would refuse them.

    Args:
        options: name of each axis that is given.
        files: of the axes.

    Raises:
        UserError: as `ippo fit` reports it.
    """
    given = {axis: name for axis, name in options.items() if name is not None}
    if "task" not in given:
        given = {"base": DEFAULT_BASE, **given}
    words = ["fit", *(word for axis, name in given.items() for word in (f"--{axis}", name))]
    line = read_command_line(words)
    is_trusted = check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=words)
    # without a task the file is a beginning, to which the user adds the data
    check_experiment(line.layers, command="fit", is_complete="task" in given)
    # of this library's own files, the tests know that the parser accepts them
    if all(path.resolve().is_relative_to(packaged_root().resolve()) for path in files):
        return
    if is_trusted and any(outside_names(line.own_layers)):
        search_working_folder()
    _parse(line, is_trusted=is_trusted)


def _parse(line: CommandLine, *, is_trusted: bool) -> None:
    from jsonargparse import ArgumentError

    from ippo_lightning.cli.error_messages import one_line, suggestion
    from ippo_lightning.cli.parsers import build_parser, known_keys

    more = () if any(layer.get("data") for layer in line.layers) else _ANY_DATA
    try:
        build_parser("fit", reads_files=is_trusted).parse_args([*line.words, *more])
    except ArgumentError as error:
        message = str(error)
        raise UserError(f"{one_line(message)}{suggestion(message, known_keys(line.words))}") from error
