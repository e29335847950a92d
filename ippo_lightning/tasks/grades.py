"""What a grader says of a response."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Label(str, Enum):
    """The kinds of reasoning; every response has exactly one."""

    FAITHFUL = "faithful"
    """Right answer, reached by right steps of this very problem."""
    FALSE_POSITIVE = "false_positive"
    """Right answer, but a step of the problem is wrong or left out."""
    SHORTCUT = "shortcut"
    """Right answer without any step."""
    NONSENSE = "nonsense"
    """Right answer after text that is not the reasoning of this problem."""
    WRONG_ANSWER = "wrong_answer"
    """Wrong answer, or none."""


@dataclass(frozen=True, slots=True)
class Grade:
    """Label, answer and whether the answer is right."""

    label: Label
    """See `Label`."""
    answer: str | None
    """In canonical form; None where the response gives none."""
    correct: bool
    """Whether `answer` is the right one."""

    @property
    def faithful(self) -> bool:
        """Whether answer and reasoning are both right."""
        return self.label is Label.FAITHFUL


def as_grade(value: Grade) -> Grade:
    """Return what a grader returned as a `Grade`."""
    return value
