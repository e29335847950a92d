"""What a grader returns for a response: right or wrong, a label, an answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


# a str, so that a label can be compared, counted and written as JSON like a user's own text
class Label(str, Enum):
    """The labels of this library's own tasks; each response has exactly one. A grader of yours may use any others."""

    FAITHFUL = "faithful"
    """Right answer, reached by right steps of this problem."""
    FALSE_POSITIVE = "false_positive"
    """Right answer, but a step of the problem is wrong or missing."""
    SHORTCUT = "shortcut"
    """Right answer without any step."""
    NONSENSE = "nonsense"
    """Right answer after text that is not the reasoning of this problem."""
    WRONG_ANSWER = "wrong_answer"
    """Wrong answer, or none."""


_FAITHFUL = {label.value: label is Label.FAITHFUL for label in Label}


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether a response is right, and what else its grader found out.

    Example:
        >>> Grade(True, "shortcut").faithful, Grade(True, "polite").faithful
        (False, None)
    """

    correct: bool
    """Whether the answer is right."""
    label: str | None = None
    """The kind of the response, a `Label` or any other short text; None if the grader gives none."""
    answer: str | None = None
    """The answer in canonical form, for the majority vote; None if the response contains none."""

    @property
    def faithful(self) -> bool | None:
        """Whether answer and reasoning are both right; None if the label says nothing about reasoning."""
        return None if self.label is None else _FAITHFUL.get(self.label)


def label_text(label: str) -> str:
    """Return a label as plain text, without an enum around it."""
    # str(label) of an enum is "Label.FAITHFUL", and not the text
    return str.__str__(label)
