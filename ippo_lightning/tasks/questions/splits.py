"""Which questions are held out: by a hash of the question, each question once, and none in two splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ippo_lightning.tasks.questions.columns import Cells


@dataclass(frozen=True, slots=True)
class Question:
    """A row that fits."""

    cells: Cells
    place: str
    """Where it stands, for messages."""
    answer_kind: str | None
    weight: float
    key: str
    """The same for the same question, whatever its case and spaces are."""

    @property
    def order(self) -> bytes:
        """A place in an order that does not depend on the files."""
        return sha256(self.key.encode()).digest()


def question_key(question: str, messages: Sequence[Any] = ()) -> str:
    """Return a text that is the same for the same question, whatever its case and spaces are.

    Signs count: `2 + 3` and `2 - 3` are two questions.

    Args:
        question: its text.
        messages: the turns before the answer, if it is a conversation.
    """
    text = json.dumps([[turn["role"], turn["content"]] for turn in messages]) if messages else question
    return "".join(text.casefold().split())


def unique(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """Return each question once, at its first place, and the others."""
    first: dict[str, Question] = {}
    others = [question for question in questions if first.setdefault(question.key, question) is not question]
    return list(first.values()), others


def without(questions: Sequence[Question], taken: Set[str]) -> list[Question]:
    """Return the questions whose keys are not taken."""
    return [question for question in questions if question.key not in taken]


def hold_out(questions: Sequence[Question], count: int) -> tuple[list[Question], list[Question]]:
    """Return the `count` questions with the smallest hashes, in that order, and the rest in theirs.

    Args:
        questions: each once.
        count: at least 0; all are held out if there are no more.
    """
    held_out = sorted(questions, key=lambda question: question.order)[:count]
    return held_out, without(questions, {question.key for question in held_out})


def fewest(questions: Sequence[Question], count: int | None) -> list[Question]:
    """Return `count` questions, chosen by hash, in their order; all for None."""
    if count is None:
        return list(questions)
    chosen = {question.key for question in hold_out(questions, count)[0]}
    return [question for question in questions if question.key in chosen]


def weighted(questions: Sequence[Question]) -> list[Question]:
    """Return each question as often as the weight of its source tells; a fraction is chosen by hash."""
    groups: dict[float, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.weight, []).append(question)
    if set(groups) <= {1.0}:
        return list(questions)
    found: list[Question] = []
    for weight, group in groups.items():
        whole = int(weight)
        found += group * whole + fewest(group, round((weight - whole) * len(group)))
    return found
