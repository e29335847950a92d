"""Prompts that are in more than one split, where a test measures memory in place of skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from ippo_lightning.tasks.conversations import row_prompt
from ippo_lightning.tasks.protocol import Row
from ippo_lightning.tasks.questions.splits import question_key


class Leak(NamedTuple):
    """Two splits that share prompts."""

    one: str
    other: str
    num_prompts: int
    example: str
    """A prompt that is in both."""


_TRAINED_ON = ("prompts", "demonstrations")


def find_leaks(splits: Mapping[str, Sequence[Row]]) -> list[Leak]:
    """Return the pairs of splits that share prompts, whatever the case and the spaces of these are.

    Demonstrations and prompts of training may share theirs.

    Args:
        splits: the rows by the names of `ippo_lightning.tasks.Split`; a split without rows in memory is not read.
    """
    keys = {
        # A row of the user's own that has no prompt is named where the prompts are checked.
        name: {_key(row): row_prompt(row) for row in rows if isinstance(row.get("prompt", ""), str)}
        for name, rows in splits.items()
        if isinstance(rows, (list, tuple))
    }
    found = []
    for one, other in combinations(keys, 2):
        shared = keys[one].keys() & keys[other].keys()
        if shared and not {one, other} <= set(_TRAINED_ON):
            found.append(Leak(one, other, len(shared), keys[one][min(shared)]))
    return found


def _key(row: Row) -> str:
    return question_key(row.get("prompt", ""), row.get("messages") or ())
