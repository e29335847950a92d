"""Text in, verdict out: answers, steps, labels. Parses, never evaluates."""

from ippo_lightning.reasoning.arithmetic import ArithmeticProblem, Step, judge_arithmetic
from ippo_lightning.reasoning.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.reasoning.verdicts import Label, Verdict

__all__ = [
    "UNFAITHFUL_KINDS",
    "ArithmeticProblem",
    "Label",
    "Step",
    "Verdict",
    "judge_arithmetic",
    "unfaithful_response",
]
