"""What a command lacks, or got too much: one line with an example of how it is called."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ippo_lightning.cli.experiment_paths import FOLDERS, axis_names, find_file
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import CONFIG

_RUN = "runs/arithmetic/ippo"
_WANTED = {
    "fit": (
        "experiment is given; expected --task NAME (with --model NAME and --method NAME), --config FILE or "
        "--resume DIR, for example: ippo fit --task arithmetic --method ippo"
    ),
    "evaluate": (
        "run and no experiment is given; expected the folder of a run of `ippo fit`, or --task NAME with --model NAME, "
        f"for example: ippo evaluate {_RUN}"
    ),
    "evaluate_runs": f"run is given; expected the folder of one, for example: ippo evaluate {_RUN} --samples 8",
    "export": f"run is given; expected the folder of a run of `ippo fit`, for example: ippo export {_RUN}",
    **{
        name: f"run is given; expected the folder of a run that kept its buffers, for example: ippo {name} {_RUN}"
        for name in ("diagnose", "trace", "intervene")
    },
    "replay": f"run is given; expected the folder of a run of `ippo fit`, for example: ippo replay {_RUN}",
    "report": f"run is given; expected the folder of one or several runs, for example: ippo report {_RUN}",
}
_REQUIRED = re.compile(r"the following arguments are required: (\w+)\.runs?\b")
_STRAY = re.compile(r"unrecognized arguments: (?P<word>[^-\s]\S*)")


def no_experiment(command: str) -> UserError:
    """Return the error of a command that got nothing to work on.

    Args:
        command: `fit` or `evaluate`.
    """
    return UserError(f"{command}: no {_WANTED[command]}")


def missing_argument(message: str) -> str | None:
    """Return the line for a required argument that is missing; None if the message of the parser is about another.

    Example:
        >>> missing_argument("the following arguments are required: replay.run")[:40]
        'replay: no run is given; expected the fo'
    """
    match = _REQUIRED.search(message)
    if match is None or match[1] not in _WANTED:
        return None
    return f"{match[1].partition('_')[0]}: no {_WANTED[match[1]]}"


_OF_FIT, _OF_COMPARE = {"model", "data", "loop", "callbacks"}, {"axes", "methods", "jobs", "seeds", "baseline"}


def require_yaml_of(command: str, content: Mapping[str, Any], name: str) -> None:
    """Refuse the YAML of a comparison for an experiment, and that of an experiment for a comparison.

    Args:
        command: that got the file.
        content: of the file.
        name: of the file.

    Raises:
        UserError: the keys are those of the other command, and none is of this one.
    """
    is_of_fit, is_of_compare = bool(_OF_FIT & content.keys()), bool(_OF_COMPARE & content.keys())
    if command == "compare" and is_of_fit and not is_of_compare:
        raise UserError(
            f"config: {name} is a YAML of `ippo fit`; use `ippo fit --config {name}`, or give a grid such as grids/demo"
        )
    if command in ("fit", "evaluate") and is_of_compare and not is_of_fit:
        raise UserError(f"config: {name} is a grid of several runs; use `ippo compare --config {name}`")


def require_command_first(words: Sequence[str], commands: Collection[str]) -> None:
    """Refuse an option before the command, which the parser would take for a wrong command.

    Args:
        words: of the command line.
        commands: those that exist.

    Raises:
        UserError: a command stands behind an option that is not one of `ippo` itself.
    """
    name = words[0].partition("=")[0]
    place = next((place for place, word in enumerate(words) if word in commands), 0)
    if name.startswith("--") and name not in ("--print_completion", "--help", "--version") and place:
        others = shlex.join([*words[:place], *words[place + 1 :]])
        raise UserError(f"command: {name} stands before it; the command comes first: ippo {words[place]} {others}")


def near_folder(name: str) -> str:
    """Return a hint at the folder beside a missing one that was probably meant, or an empty text.

    Args:
        name: a path that does not exist.
    """
    parent = Path(name).parent
    if Path(name).exists() or not parent.is_dir():
        return ""
    beside = sorted(str(path) for path in parent.iterdir() if path.is_dir())
    near = difflib.get_close_matches(name, beside, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def require_option(command: str, word: str) -> None:
    """Refuse a word of `fit` that belongs to no option: the parser knows no such word, and would complain later.

    Args:
        command: of an experiment; `ippo evaluate RUN` does not come here.
        word: with one dash, it may be an option of the parser's own.

    Raises:
        UserError: the word begins without a dash.
    """
    if not word.startswith("-"):
        raise UserError(f"{command}: '{word}' belongs to no option{_place_of(word)}")


def stray_word(message: str) -> str:
    """Return a hint at the option that a word belongs to, from a message of the parser; else an empty text."""
    match = _STRAY.search(message)
    return "" if match is None or find_file(match["word"]) is None else f"; did you mean --config {match['word']}?"


def _place_of(word: str) -> str:
    if (Path(word) / CONFIG).is_file():
        return f"; did you mean --resume {word}?"
    if find_file(word) is not None:
        return f"; did you mean --config {word}?"
    # in the order in which a newcomer needs them
    for axis in ("task", "method", "model", "base"):
        if word in axis_names(axis):
            return f"; did you mean --{axis} {word}?"
    return f"; expected --{' NAME, --'.join(FOLDERS)} NAME, or --config FILE"


def unknown_command(word: str, commands: Collection[str]) -> UserError:
    """Return the error of a command that does not exist.

    Args:
        word: what the user wrote.
        commands: those that exist.
    """
    near = difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"command: '{word}' is unknown; expected one of {', '.join(commands)}{hint}")
