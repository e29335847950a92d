"""Graders by the kind of answer that a task asks for, for any data with a right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ippo_lightning.errors import UserError, require_choice
from ippo_lightning.tasks.answers.equivalence import same_answer
from ippo_lightning.tasks.answers.extraction import ANSWER_KINDS, AnswerKind, extract_answer
from ippo_lightning.tasks.grades import Grade, Label
from ippo_lightning.tasks.steps import StepForm, label_steps


class AnswerGrader:
    r"""Grades a response by its final answer, and on request by its steps.

    The example has `answer`, the right one without mark or box; `options` for the kind `option`, if a letter may stand
    for an option; `question` for `known_numbers`. A right response has the text of the right answer as its answer, so
    that equal answers of different spelling vote together.

    Args:
        kind: how the response states its answer; see `extract_answer`.
        steps: which steps are checked if the answer is right; see `label_steps`. None for no label.
        known_numbers: whether each number of a step must come from the question or from an earlier step.

    Raises:
        UserError: the kind is unknown, or `known_numbers` without `steps`; in a call, the example has no answer.

    Example:
        >>> AnswerGrader("boxed")("1+1?", r"It is \boxed{2}.", {"answer": "2"})
        Grade(correct=True, label=None, answer='2')
    """

    def __init__(self, kind: AnswerKind, *, steps: StepForm | None = None, known_numbers: bool = False) -> None:
        require_choice("grader.kind", kind, ANSWER_KINDS)
        if steps is not None:
            require_choice("grader.steps", steps, ("annotations", "plain", "both"))
        elif known_numbers:
            raise UserError("grader.known_numbers: true without steps has no effect; set grader.steps, or false")
        self.kind: AnswerKind = kind
        self.steps: StepForm | None = steps
        self.known_numbers = known_numbers

    def __call__(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return whether the answer is right, the answer, and a label if steps are checked.

        Args:
            prompt: ignored; a template may have put other numbers into it.
            response: any text.
            example: what the task knows about the prompt.
        """
        gold, options = _gold(example), _options(example)
        answer = extract_answer(response, self.kind, options)
        if not same_answer(answer, gold, self.kind):
            return Grade(False, None if self.steps is None else Label.WRONG_ANSWER, answer)
        if self.steps is None:
            return Grade(True, None, gold)
        question = example.get("question")
        if self.known_numbers and not isinstance(question, str):
            raise UserError("example.question: missing; grader.known_numbers needs the text with the numbers")
        return Grade(True, label_steps(response, self.steps, question=question if self.known_numbers else None), gold)


def _gold(example: Mapping[str, Any]) -> str:
    gold = example.get("answer")
    # A file may contain numbers; True is one for Python.
    if isinstance(gold, (int, float)) and not isinstance(gold, bool):
        return f"{gold:.12g}" if isinstance(gold, float) else str(gold)
    if not isinstance(gold, str) or not gold.strip():
        raise UserError(f"example.answer: {gold!r:.60} is no answer; expected text or a number")
    return gold


def _options(example: Mapping[str, Any]) -> Sequence[str] | None:
    options = example.get("options")
    if options is None:
        return None
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise UserError(f"example.options: {options!r:.60} is wrong; expected a list of texts")
    return list(options)


def grade_hash(prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
    """Grade by the answer behind the last `####`; see `AnswerGrader`."""
    return GRADERS["hash"](prompt, response, example)


def grade_boxed(prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
    """Grade by the content of the last box of LaTeX; see `AnswerGrader`."""
    return GRADERS["boxed"](prompt, response, example)


def grade_option(prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
    """Grade by the option that the response names; see `AnswerGrader`."""
    return GRADERS["option"](prompt, response, example)


def grade_number(prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
    """Grade by the last number of the response; see `AnswerGrader`."""
    return GRADERS["number"](prompt, response, example)


GRADERS: Mapping[AnswerKind, AnswerGrader] = {kind: AnswerGrader(kind) for kind in ANSWER_KINDS}
"""A grader of each kind, without a check of steps."""


def named_grader(kind: str) -> AnswerGrader:
    """Return the grader of a kind.

    Raises:
        UserError: there is no such kind.
    """
    require_choice("grader.kind", kind, ANSWER_KINDS)
    return next(grader for name, grader in GRADERS.items() if name == kind)
