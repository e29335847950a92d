"""Text in, verdict out: answers, steps, labels. Parses, never evaluates."""

from ippo_lightning.reasoning.arithmetic import MAX_DIGITS, ArithmeticProblem, Step, judge_arithmetic
from ippo_lightning.reasoning.gsm8k import gsm8k_answer, judge_gsm8k
from ippo_lightning.reasoning.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.reasoning.verdicts import Label, Verdict

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
