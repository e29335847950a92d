"""Text in, verdict out: answers, steps, labels. Parses, never evaluates."""

from ippo_lightning.tasks.arithmetic.grading import MAX_DIGITS, ArithmeticProblem, Step, judge_arithmetic
from ippo_lightning.tasks.arithmetic.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.tasks.grades import Label, Verdict
from ippo_lightning.tasks.gsm8k.grading import gsm8k_answer, judge_gsm8k

__all__ = [
    "MAX_DIGITS",
    "UNFAITHFUL_KINDS",
    "ArithmeticProblem",
    "Label",
    "Step",
    "Verdict",
    "gsm8k_answer",
    "judge_arithmetic",
    "judge_gsm8k",
    "unfaithful_response",
]
