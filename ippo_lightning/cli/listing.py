"""`ippo experiments`: what there is to run, with the question that each file answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ippo_lightning.cli.experiment_paths import FOLDERS, ROOT, packaged_root
from ippo_lightning.cli.yaml_text import read_text
from ippo_lightning.errors import UserError
from ippo_lightning.storage.untrusted_text import visible_text

USES = {
    "base": "ippo fit --base NAME",
    "tasks": "ippo fit --task NAME",
    "models": "ippo fit --task TASK --model NAME",
    "methods": "ippo fit --task TASK --method NAME",
    "rewards": "ippo fit --task TASK --config rewards/NAME",
    "grids": "ippo compare --config grids/NAME",
}
"""Folders of experiments in the order of a list, and how a name of each is used."""
_MOST_LINES = 8
"""Lines of a comment that a question may take; a user's file may begin with a long text without a full stop."""


@dataclass(frozen=True)
class Entry:
    """One experiment: its folder, its name, the question it answers, and whether it is the user's own."""

    folder: str
    name: str
    question: str
    is_own: bool


def list_experiments(axis: str | None = None) -> list[Entry]:
    """Return the experiments of the working directory and of the package; one's own hides a packaged one.

    Args:
        axis: name of a folder or of an option, such as `tasks` or `task`; None for all.

    Raises:
        UserError: there is no such axis.
    """
    folder = FOLDERS.get(axis or "", axis)
    if folder is not None and folder not in USES and f"{folder}s" in USES:
        folder = f"{folder}s"
    if folder is not None and folder not in USES:
        raise UserError(f"axis: '{axis}' is unknown; expected one of {', '.join(USES)}")
    found: list[Entry] = []
    for name in USES if folder is None else (folder,):
        files = {path.stem: path for path in sorted((packaged_root() / name).glob("*.yaml"))}
        own = {path.stem: path for path in sorted(Path(ROOT, name).glob("*.yaml")) if not _is_packaged(path)}
        both = {**files, **own}
        found += [Entry(name, stem, _question(both[stem]), stem in own) for stem in sorted(both)]
    return found


def _is_packaged(path: Path) -> bool:
    # in a checkout, the working directory's folder is the packaged one
    return path.resolve().is_relative_to(packaged_root().resolve())


def _question(path: Path) -> str:
    """Return what a YAML asks: its first comment up to the line that ends a sentence; empty if there is none."""
    try:
        lines = read_text(path).splitlines()
    except UserError:  # one file that cannot be read does not hide the others
        return ""
    words: list[str] = []
    for line in lines[:_MOST_LINES]:
        text = line.lstrip("# ").strip()
        # A command below an unfinished sentence is no part of it.
        if not line.startswith("#") or not text or text.startswith("ippo "):
            break
        words.append(text)
        if text.endswith((".", "?", "!")):
            break
    return visible_text(" ".join(words))


def print_experiments(entries: list[Entry]) -> None:
    """Print experiments: tables at a terminal; for a pipe one line each, folder, name and question between tabs."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        for entry in entries:
            sys.stdout.write(f"{entry.folder}\t{entry.name}\t{entry.question}\n")
        return
    for folder in dict.fromkeys(entry.folder for entry in entries):
        _print_table(console, folder, [entry for entry in entries if entry.folder == folder])


def _print_table(console: object, folder: str, entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    console.print(Text.assemble((folder, "bold"), ": ", USES[folder]))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=16)
    table.add_column(ratio=1)
    for entry in entries:
        # as Text, because a file of the user's may contain what rich reads as a style
        table.add_row(Text(f"  {visible_text(entry.name)}{' (here)' if entry.is_own else ''}"), Text(entry.question))
    console.print(table)
    console.print()
