"""How public data sets of questions write their rows, as their sources publish them and as the Hub has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.gsm8k.expressions import ExpressionError, calculate
from ippo_lightning.tasks.gsm8k.grading import gsm8k_answer
from ippo_lightning.tasks.json_lines import check_text
from ippo_lightning.tasks.questions.answer_kinds import last_boxed, number_text
from ippo_lightning.tasks.questions.columns import Cells, plain_text
from ippo_lightning.tasks.questions.sources import AnswerKindName

Row = Mapping[str, Any]
_DOLLAR = re.compile(r"(?<!\\)\$")
_WHOLE = re.compile(r"\b([0-9]+)\.0\b")
NUM_OPTIONS = 5
"""Options of a question of ECQA."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a public data set are read."""

    read: Callable[[Row, str], Cells]
    """Called with a row and its place; raises `UserError` for a row that does not fit."""
    answer_kind: AnswerKindName
    column_names: tuple[str, ...] | None = None
    """Of a `.tsv` file whose first line is a row already."""


def _gsm8k(row: Row, place: str) -> Cells:
    question, worked = (check_text(row.get(key), key, place) for key in ("question", "answer"))
    answer = gsm8k_answer(worked)
    if answer is None:
        raise UserError(f"{place}: answer has no number after ####")
    steps, mark, _ = worked.rpartition("####")
    return Cells(question, f"{steps}{mark} {answer}", answer)


def _math(row: Row, place: str) -> Cells:
    question, solution = check_text(row.get("problem"), "problem", place), row.get("solution")
    response = None if solution is None else check_text(solution, "solution", place)
    # the Hub's copy has solutions only; the answer stands in the last box
    given = row.get("answer") if "answer" in row or response is None else last_boxed(response)
    return Cells(question, response, check_text(given, "answer", place))


def _college_math(row: Row, place: str) -> Cells:
    question, answer = (check_text(row.get(key), key, place) for key in ("question", "answer"))
    return Cells(question, None, check_text(_without_dollars(answer), "answer", place))


def _olympiadbench(row: Row, place: str) -> Cells:
    question, answers = check_text(row.get("question"), "question", place), row.get("final_answer")
    if not isinstance(answers, list) or len(answers) != 1:
        raise UserError(f"{place}: final_answer is {answers!r:.40}; expected a list of one text")
    answer = _without_dollars(check_text(answers[0], "final_answer", place))
    if row.get("context"):
        question = f"{check_text(row['context'], 'context', place)}\n{question}"
    solutions = row.get("solution") or [None]
    response = None
    if solutions[0] is not None:
        worked = check_text(solutions[0], "solution", place)
        response = f"{worked}\nThe final answer is $\\boxed{{{answer}}}$."  # where the grader reads it
    kept = {"is_set": bool(row.get("is_multiple_answer")), "unit": row.get("unit")}
    return Cells(question, response, answer, kept=kept)


def _ecqa(row: Row, place: str) -> Cells:
    if "q_text" in row:  # as the Hub has it
        text = check_text(row["q_text"], "q_text", place)
        options = [check_text(row.get(f"q_op{number}"), f"q_op{number}", place) for number in range(1, NUM_OPTIONS + 1)]
        answer, explanation = row.get("q_ans"), row.get("taskB") or None
    else:
        text, options = _options_in(check_text(row.get("question"), "question", place), place)
        answer, explanation = row.get("answer"), row.get("explanation")
    answer = check_text(answer, "answer", place)
    if answer not in options:
        raise UserError(f"{place}: answer {answer!r:.40} is none of the options; expected the exact text of one")
    listed = "".join(f"\n- {option}" for option in options)
    response = f"{check_text(explanation, 'explanation', place)}\n#### {answer}" if explanation is not None else None
    return Cells(f"{text}\nOptions:{listed}", response, answer, kept={"options": options})


def _options_in(question: str, place: str) -> tuple[str, list[str]]:
    """Return the question and the options of a text that has backslash and `n` in place of line ends."""
    text, mark, listed = question.partition("\\nOptions:\\n- ")
    options = listed.split("\\n- ")
    if not mark or len(options) != NUM_OPTIONS:
        raise UserError(f"{place}: question has no list of {NUM_OPTIONS} options")
    return text.replace("\\n", "\n"), options


def _svamp(row: Row, place: str) -> Cells:
    question = _joined(row, ("Body", "Question"), place)
    answer = _number(plain_text(row.get("Answer"), "Answer", place), place)
    equation = _WHOLE.sub(r"\1", str(row.get("Equation", ""))).strip()
    if equation.startswith("(") and equation.endswith(")"):
        equation = equation[1:-1].strip()
    return Cells(question, _worked(f"{equation} = {answer}", answer), answer)


def _asdiv(row: Row, place: str) -> Cells:
    # the unit stands behind the number: "9 (apples)"
    answer = _number(check_text(row.get("answer"), "answer", place).split(" (")[0], place)
    return Cells(_joined(row, ("body", "question"), place), _worked(str(row.get("formula", "")), answer), answer)


def _mawps(row: Row, place: str) -> Cells:
    answer = _number(plain_text(row.get("target"), "target", place), place)
    return Cells(check_text(row.get("input"), "input", place), None, answer)


def _joined(row: Row, names: tuple[str, ...], place: str) -> str:
    return " ".join(check_text(row.get(name), name, place).strip() for name in names)


def _number(text: str, place: str) -> str:
    number = number_text(text)
    if number is None:
        raise UserError(f"{place}: answer {text!r:.40} is no number")
    return number


def _worked(step: str, answer: str) -> str | None:
    """Return a step with the answer behind it, or None if the step does not compute that answer."""
    left, equals, right = step.rpartition("=")
    try:
        is_right = bool(equals) and calculate(left) == calculate(answer) == calculate(right)
    except ExpressionError:  # functions such as GCD, units, comparisons
        return None
    return f"{step.strip()}\n#### {answer}" if is_right else None


def _without_dollars(text: str) -> str:
    return _DOLLAR.sub("", text).strip()


LAYOUTS: Mapping[str, Layout] = {
    "asdiv": Layout(_asdiv, "number"),
    "college_math": Layout(_college_math, "boxed"),
    "ecqa": Layout(_ecqa, "option", ("question", "answer", "explanation")),
    "gsm8k": Layout(_gsm8k, "gsm8k"),
    "math": Layout(_math, "boxed"),
    "mawps": Layout(_mawps, "number"),
    "olympiadbench": Layout(_olympiadbench, "boxed"),
    "svamp": Layout(_svamp, "number"),
}
"""By the names that `Source.layout` takes."""
