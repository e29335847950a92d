"""Answers of responses: found by the form that a task asks for, compared as what they mean, and graded."""

from ippo_lightning.tasks.answers.equivalence import same_answer
from ippo_lightning.tasks.answers.extraction import ANSWER_KINDS, AnswerKind, extract_answer
from ippo_lightning.tasks.answers.grading import (
    GRADERS,
    AnswerGrader,
    grade_boxed,
    grade_hash,
    grade_number,
    grade_option,
    named_grader,
)

__all__ = [
    "ANSWER_KINDS",
    "GRADERS",
    "AnswerGrader",
    "AnswerKind",
    "extract_answer",
    "grade_boxed",
    "grade_hash",
    "grade_number",
    "grade_option",
    "named_grader",
    "same_answer",
]
