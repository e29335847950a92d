"""`ippo evaluate RUN ...`: the words of a command that names folders of runs, and not an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ippo_lightning.cli.trust import without_trust
from ippo_lightning.errors import UserError

EVALUATE_RUNS = "evaluate_runs"
"""Name by which the parser knows `ippo evaluate RUN`; a user cannot type it."""
_OF_AN_EXPERIMENT = ("config", "base", "task", "method")
_WITHOUT_VALUE = ("--help", "-h")


def of_runs(words: Sequence[str]) -> list[str] | None:
    """Return the words for the parser of `EVALUATE_RUNS`; None for any other command.

    Args:
        words: of the command line, the command first.

    Raises:
        UserError: a run and the files of an experiment are given together.
    """
    if words[:1] != ["evaluate"] or not any(not word[0].startswith("-") for word in _groups(words)):
        return None
    groups = list(_groups(words))
    for name in _OF_AN_EXPERIMENT:
        if any(word[0].partition("=")[0] == f"--{name}" for word in groups):
            raise UserError(f"{name}: cannot be combined with a RUN, whose config.yaml names its files")
    # The run's own Fabric gets these, see `fabric_words`.
    return [EVALUATE_RUNS, *(word for group in groups if not _is_fabric(group) for word in group)]


def fabric_words(words: Sequence[str]) -> list[str]:
    """Return the options `--fabric.KEY VALUE` of a command.

    Args:
        words: of the command line, the command first.
    """
    return [word for group in _groups(words) if _is_fabric(group) for word in group]


def _is_fabric(group: Sequence[str]) -> bool:
    return group[0].startswith("--fabric.")


def _groups(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield each option with its value, and each other word alone."""
    waiting = without_trust(words)[0][1:]
    while waiting:
        word = waiting.pop(0)
        takes_value = word.startswith("--") and "=" not in word and word not in _WITHOUT_VALUE
        # One dash begins no option here: -1 is a value.
        yield [word, waiting.pop(0)] if takes_value and waiting and not waiting[0].startswith("--") else [word]
