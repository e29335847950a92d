"""Grades of word problems: the number after `####`, and whether the `<<48/2=24>>` annotations are right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.grades import Grade, Label
from ippo_lightning.tasks.steps import label_steps

MAX_LENGTH = 16384
"""Characters of a response; a longer one is not read and counts as a wrong answer."""

_MARK = "####"
_AFTER_MARK = 80  # bounds the time of the regular expression below
_NUMBER = re.compile(
    r"\s*([+\-]?)\s*\$?\s*([+\-]?)((?=\.?[0-9])[0-9,]{0,40}(?:\.[0-9]{0,30})?)"
    r"(?![.,]?[0-9])"  # neither 1.2.3 nor more digits than the bounds allow
    r"(?!\s*[/^]\s*[0-9]|[eE][+\-]?[0-9])"  # nor 1/2, 2^3, 1e3, where the number has not ended
)


def gsm8k_answer(text: str) -> str | None:
    """Return the number after the last `####`, in canonical form.

    Commas, a dollar sign, a plus and the text after the number are left out; `1,000.50` becomes `1000.5`.

    Args:
        text: a response or a reference solution.

    Returns:
        Digits without leading zeros, decimals only if they are not zero; None without `####` or without a number
        directly after it. At most 80 characters after `####` are read.
    """
    _, mark, tail = text.rpartition(_MARK)
    found = _NUMBER.match(tail[:_AFTER_MARK]) if mark else None
    if found is None or (found[1] and found[2]):
        return None
    # Decimal and not float: all digits count, and 0.1 stays 0.1
    number = Decimal((found[1] or found[2]) + found[3].replace(",", ""))
    # -0 and 0 are the same answer; `f` writes no exponent, so equal numbers have equal texts
    written = f"{abs(number) if number.is_zero() else number:f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def grade_gsm8k(prompt: str, response: str | bytes, example: Mapping[str, Any]) -> Grade:
    """Grade a response to a word problem, in time linear in its length.

    The answer is the number after the last `####`, and is right if it equals the reference exactly. With a right answer
    the annotations `<<expression=result>>` decide: none is a shortcut; all arithmetically right is faithful; one that
    cannot be read makes it nonsense; otherwise, one that is wrong makes it a false positive. Whether a step belongs to
    the problem is not graded.

    Args:
        prompt: ignored.
        response: any text; bytes are read as Latin-1. More than 16,384 characters are a wrong answer.
        example: `answer` is the reference, in the form of `gsm8k_answer`.

    Returns:
        Label, answer and whether it is right.

    Raises:
        UserError: the example has no `answer`, or one that is not text.
    """
    reference = example.get("answer")
    if not isinstance(reference, str):
        raise UserError(f"example.answer: {reference!r} is not text; expected the reference number, such as '72'")
    text = response.decode("latin-1") if isinstance(response, bytes) else response
    answer = gsm8k_answer(text) if len(text) <= MAX_LENGTH else None
    if answer is None or answer != reference:
        return Grade(False, Label.WRONG_ANSWER, answer)
    return Grade(True, label_steps(text, "annotations"), answer)
