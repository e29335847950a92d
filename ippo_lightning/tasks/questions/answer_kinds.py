"""Where an answer stands in a response, and whether it is right: one entry per kind. Text is never evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.grades import Grade
from ippo_lightning.tasks.gsm8k.grading import MAX_LENGTH, grade_gsm8k, gsm8k_answer
from ippo_lightning.tasks.protocol import Grader

_MARK = "####"
_BOX = "\\boxed{"
_MAX_ANSWER = 1000  # characters of an answer; a longer one is none
_NUMBER = re.compile(r"(?<![0-9.,])[+\-]?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})?(?:\.[0-9]{1,18})?(?![0-9])")
_WHOLE_NUMBER = re.compile(r"\s*[+\-]?\s*\$?\s*(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})?(?:\.[0-9]{0,18})?\s*\Z")
_LAYOUT_OF_LATEX = re.compile(r"\\left|\\right|\\[,;:! ]|\\(?:text|mathrm)(?=\{)|[\s${}]")


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """How the answers of one kind are read and compared."""

    reference: Callable[[str], str | None]
    """Returns the right answer of a row in canonical form; None if the text is no such answer."""
    grade: Grader
    """Called with prompt, response and example; `answer` of the example is the reference."""


def number_text(text: str) -> str | None:
    """Return a number in canonical form, or None if the text is anything else.

    Args:
        text: digits with sign, thousands separators, decimals, and a dollar sign.
    """
    return gsm8k_answer(f"{_MARK} {text}") if _WHOLE_NUMBER.match(text) else None


def last_number(text: str) -> str | None:
    """Return the last number of a text in canonical form; after `####`, if the text has that."""
    _, mark, tail = text.rpartition(_MARK)
    found = [match.group() for match in _NUMBER.finditer(tail) if any(sign.isdigit() for sign in match.group())]
    if not found:
        return None
    return number_text(found[0] if mark else found[-1])


def last_boxed(text: str) -> str | None:
    r"""Return what is inside of the last `\boxed{...}`, matched by braces; None without one that is closed."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for place in range(begin, min(len(text), begin + _MAX_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def _boxed_reference(text: str) -> str | None:
    inside = last_boxed(text) or text.strip().strip("$").strip()
    return inside if 0 < len(inside) <= _MAX_ANSWER else None


def _text_reference(text: str) -> str | None:
    return text.strip() if 0 < len(text.strip()) <= _MAX_ANSWER else None


def _marked(response: str) -> str | None:
    """Return the rest of the line after the last `####`."""
    _, mark, tail = response.rpartition(_MARK)
    lines = tail.strip()[: _MAX_ANSWER + 1].splitlines() if mark else []
    return _text_reference(lines[0]) if lines else None


def _marked_or_last(response: str) -> str | None:
    """Return the rest of the line after the last `####`, or else the last line."""
    lines = response.strip().splitlines()
    return _marked(response) or (_text_reference(lines[-1]) if lines else None)


def _grader(extract: Callable[[str], str | None], form: Callable[[str], str]) -> Grader:
    """Return a grader that compares what is extracted with the reference, both in the same form."""

    def grade(prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        reference = example.get("answer")
        if not isinstance(reference, str):
            raise UserError(f"example.answer: {reference!r:.40} is not text; expected the right answer")
        answer = extract(response) if len(response) <= MAX_LENGTH else None
        if answer is None:
            return Grade(False)
        is_right = form(answer) == form(reference)
        # the reference's own text, so that all right answers have one form in the majority vote
        return Grade(is_right, answer=reference if is_right else answer)

    return grade


def _latex_form(text: str) -> str:
    return _LAYOUT_OF_LATEX.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")).rstrip(".")


def _text_form(text: str) -> str:
    return number_text(text) or " ".join(text.casefold().split()).rstrip(".")


ANSWER_KINDS: Mapping[str, AnswerKind] = {
    "boxed": AnswerKind(_boxed_reference, _grader(last_boxed, _latex_form)),
    "gsm8k": AnswerKind(number_text, grade_gsm8k),
    "hash": AnswerKind(_text_reference, _grader(_marked, _text_form)),
    "number": AnswerKind(number_text, _grader(last_number, str)),
    "option": AnswerKind(_text_reference, _grader(_marked_or_last, _text_form)),
}
"""By the names that `Source.answer_kind` takes."""
