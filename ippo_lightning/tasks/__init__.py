"""Text in, grade out: answers, steps, labels. Parses, never evaluates."""

from ippo_lightning.tasks.arithmetic.grading import MAX_DIGITS, ArithmeticProblem, Step, grade_arithmetic
from ippo_lightning.tasks.arithmetic.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.tasks.grades import Grade, Label
from ippo_lightning.tasks.gsm8k.grading import grade_gsm8k, gsm8k_answer

__all__ = [
    "MAX_DIGITS",
    "UNFAITHFUL_KINDS",
    "ArithmeticProblem",
    "Grade",
    "Label",
    "Step",
    "grade_arithmetic",
    "grade_gsm8k",
    "gsm8k_answer",
    "unfaithful_response",
]
