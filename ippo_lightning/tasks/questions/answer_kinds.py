"""The kinds of right answers that a source may have: how one is written in a canonical form, and who grades it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ippo_lightning.tasks.answers import GRADERS, extract_answer
from ippo_lightning.tasks.gsm8k.grading import grade_gsm8k, gsm8k_answer
from ippo_lightning.tasks.protocol import Grader

_MAX_ANSWER = 1000  # characters of an answer; a longer one is none
_WHOLE_NUMBER = re.compile(r"\s*[+\-]?\s*\$?\s*(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})?(?:\.[0-9]{0,18})?\s*\Z")


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
    return gsm8k_answer(f"#### {text}") if _WHOLE_NUMBER.match(text) else None


def last_boxed(text: str) -> str | None:
    r"""Return what is inside of the last `\boxed{...}`, matched by braces; None without one that is closed."""
    return extract_answer(text, "boxed")


def _boxed_reference(text: str) -> str | None:
    return _text_reference(last_boxed(text) or text.strip().strip("$"))


def _text_reference(text: str) -> str | None:
    return text.strip() if 0 < len(text.strip()) <= _MAX_ANSWER else None


def _hash_reference(text: str) -> str | None:
    return number_text(text) or _text_reference(text)  # as the answer of a response is written, for the vote


ANSWER_KINDS: Mapping[str, AnswerKind] = {
    "boxed": AnswerKind(_boxed_reference, GRADERS["boxed"]),
    "gsm8k": AnswerKind(number_text, grade_gsm8k),
    "hash": AnswerKind(_hash_reference, GRADERS["hash"]),
    "number": AnswerKind(number_text, GRADERS["number"]),
    "option": AnswerKind(_text_reference, GRADERS["option"]),
}
"""By the names that `Source.answer_kind` takes."""
