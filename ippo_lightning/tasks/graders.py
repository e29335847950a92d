"""Calls of a grader, and how what it returns becomes a `Grade`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Real
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.conversations import row_prompt
from ippo_lightning.tasks.grades import Grade, label_text
from ippo_lightning.tasks.names import callable_name
from ippo_lightning.tasks.protocol import Grader, Row
from ippo_lightning.tasks.raised import raised

MAX_LABEL_LENGTH = 80
"""Characters of a label; a label names a category; it is not free text, and becomes the name of a metric."""

WRONG_LABELS = frozenset({"wrong", "wrong_answer", "incorrect", "false", "no", "fail", "failed"})
"""Labels that mean a wrong answer, in lower case, with `_` for spaces and hyphens."""

_ROWS_CHECKED = 2
_EXPECTED = "a Grade, a bool, a number from 0 to 1, or a label"


def as_grade(value: object, *, grader: object = None) -> Grade:
    """Return what a grader returned as a `Grade`.

    - A `Grade` stays as it is.
    - A bool is True for a right response.
    - A number from 0 to 1 is right if it is exactly 1, so partial credit is not a right answer. Return a bool for
      another threshold.
    - A string is a label. The response is right unless the label is one of `WRONG_LABELS`; upper case, spaces and
      hyphens make no difference. Return a `Grade` if that rule does not fit.

    Args:
        value: what the grader returned; a NumPy or torch scalar counts as its number.
        grader: for the message.

    Raises:
        UserError: anything else; one line that names the grader.
    """
    if isinstance(value, Grade):
        correct = value.correct.item() if hasattr(value.correct, "item") else value.correct  # np.bool_ is no bool
        # any text is true, so a Grade("no") would count as right
        if not isinstance(correct, bool):
            raise _refusal(value.correct, grader, expected="a Grade whose `correct` is a bool")
        value = replace(value, correct=correct)
        _check_label(value.label, grader)
        # the vote compares answers with text, so a number would never win it
        if value.answer is not None and not isinstance(value.answer, str):
            raise _refusal(value.answer, grader, expected="an answer of text, or None")
        return value
    if not isinstance(value, (bool, str, Real)) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # np.bool_ and torch scalars are no Python numbers
    if isinstance(value, bool):
        return Grade(value)
    if isinstance(value, str):
        _check_label(value, grader)
        plain = label_text(value).strip().lower().replace(" ", "_").replace("-", "_")
        return Grade(plain not in WRONG_LABELS, value)
    if isinstance(value, Real) and 0 <= float(value) <= 1:
        return Grade(bool(value == 1))
    raise _refusal(value, grader)


def call_grader(grader: Grader, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
    """Return the grade of one response, whatever of the accepted types the grader returns.

    Args:
        grader: called as `grader(prompt, response, example)`.
        prompt: what the policy read.
        response: what the policy wrote.
        example: what the task knows about the prompt.

    Raises:
        UserError: the grader raised, or returned what `as_grade` does not accept.
    """
    try:
        value = grader(prompt, response, example)
    except (UserError, KeyboardInterrupt):
        raise  # already one line for the user, or the user's Ctrl-C
    except BaseException as error:  # SystemExit too: a user's code may raise anything; its cause stays attached
        raise UserError(f"model.grader: {callable_name(grader)} {raised(error, example)}") from error
    return as_grade(value, grader=grader)


def call_grader_on_all(grader: Grader, rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Grade]:
    """Return the grade of each response; a grader with a method `grade_all` gets all of them in one call.

    Args:
        grader: see `call_grader`; `grade_all(prompts, responses, examples)` returns one grade per response.
        rows: prompt, response and example of each response.

    Raises:
        UserError: see `call_grader`; or `grade_all` returned another number of grades.
    """
    grade_all = getattr(grader, "grade_all", None)
    if not callable(grade_all):
        return [call_grader(grader, *row) for row in rows]
    columns = tuple(map(list, zip(*rows, strict=True))) or ([], [], [])
    try:
        values = list(grade_all(*columns))
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        example = rows[0][2] if rows else {}
        raise UserError(f"model.grader: {callable_name(grader)}.grade_all {raised(error, example)}") from error
    if len(values) != len(rows):
        raise UserError(
            f"model.grader: {callable_name(grader)}.grade_all returned {len(values)} grades for {len(rows)} responses; "
            "expected one each"
        )
    return [as_grade(value, grader=grader) for value in values]


def check_grader(grader: Grader, rows: Iterable[Row]) -> None:
    """Call a grader on the first two rows, so that a mistake in it shows before the first iteration.

    Args:
        grader: called with each row's prompt, its response (or an empty one) and its example.
        rows: any, demonstrations if there are some.

    Raises:
        UserError: the grader raised, or returned what `as_grade` does not accept.
    """
    for row in islice(rows, _ROWS_CHECKED):
        call_grader(grader, row_prompt(row), row.get("response", ""), row["example"])


def _check_label(label: object, grader: object) -> None:
    """Refuse a label that cannot be the name of a metric."""
    if label is None or (isinstance(label, str) and 0 < len(label) <= MAX_LABEL_LENGTH and label.isprintable()):
        return
    raise _refusal(label, grader, expected=f"a label of 1 to {MAX_LABEL_LENGTH} printable characters")


def _refusal(value: object, grader: object, *, expected: str = _EXPECTED) -> UserError:
    name = "the grader" if grader is None else callable_name(grader)
    # the value may contain generated text, and its own __repr__ may contain an address
    shown = f"{value!r:.60}" if isinstance(value, (str, int, float)) else type(value).__name__
    return UserError(f"model.grader: {name} returned {shown}; expected {expected}")
