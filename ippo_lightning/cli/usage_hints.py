"""What a command lacks, or got too much: one line with an example of how it is called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path

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
