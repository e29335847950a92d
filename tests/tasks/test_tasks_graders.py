"""A grader may return a grade, a bool, a number or a label; anything else is one line before the first iteration."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import (
    WRONG_LABELS,
    Grade,
    Label,
    as_grade,
    call_grader,
    check_grader,
    grade_arithmetic,
    label_text,
)


class Tone(str, Enum):
    POLITE = "polite"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, Grade(True)),
        (False, Grade(False)),
        (np.bool_(True), Grade(True)),
        (torch.tensor(False), Grade(False)),
        (1, Grade(True)),
        (0, Grade(False)),
        (1.0, Grade(True)),
        (0.999, Grade(False)),
        (np.float32(1), Grade(True)),
        (torch.tensor(0.25), Grade(False)),
        ("polite", Grade(True, "polite")),
        (Tone.POLITE, Grade(True, Tone.POLITE)),
        ("wrong", Grade(False, "wrong")),
        ("Wrong answer", Grade(False, "Wrong answer")),
        ("in-correct", Grade(True, "in-correct")),
        (Label.WRONG_ANSWER, Grade(False, Label.WRONG_ANSWER)),
        (Label.SHORTCUT, Grade(True, Label.SHORTCUT)),
        (Grade(True, "polite", "14"), Grade(True, "polite", "14")),
    ],
    ids=repr,
)
def test_what_a_grader_may_return(value: Any, expected: Grade) -> None:
    assert as_grade(value) == expected


@pytest.mark.parametrize("label", sorted(WRONG_LABELS))
def test_a_label_that_means_wrong_is_wrong(label: str) -> None:
    assert not as_grade(label.upper().replace("_", " ")).correct


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned NoneType; expected a Grade, a bool, a number from 0 to 1, or a label"),
        ([True], "returned list; expected a Grade"),
        (b"right", "returned bytes; expected a Grade"),
        (1.5, "returned 1.5; expected a Grade"),
        (-1, "returned -1; expected a Grade"),
        (float("nan"), "returned nan; expected a Grade"),
        (np.ones(2), "returned ndarray; expected a Grade"),
        (torch.ones(2), "returned Tensor; expected a Grade"),
        ("", "returned ''; expected a label of 1 to 80 printable characters"),
        ("x" * 81, "expected a label of 1 to 80 printable characters"),
        ("two\nlines", "expected a label of 1 to 80 printable characters"),
        (Grade(True, 3), "returned 3; expected a label"),  # type: ignore[arg-type]
        (Grade(True, None, 14), "returned 14; expected an answer of text, or None"),  # type: ignore[arg-type]
    ],
    ids=[
        "none",
        "list",
        "bytes",
        "above one",
        "below zero",
        "nan",
        "array",
        "tensor",
        "no text",
        "long text",
        "two lines",
        "label of a grade",
        "answer of a grade",
    ],
)
def test_anything_else_names_the_grader_in_one_line(value: Any, said: str) -> None:
    def my_grader(prompt, response, example):
        return value

    with pytest.raises(UserError) as caught:
        call_grader(my_grader, "a", "b", {})
    message = str(caught.value)
    assert message.startswith("model.grader: ")
    assert "my_grader returned" in message
    assert said in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (Label.FAITHFUL, True),
        ("faithful", True),
        (Label.SHORTCUT, False),
        ("nonsense", False),
        (Label.FALSE_POSITIVE, False),
        (Label.WRONG_ANSWER, False),
        ("polite", None),
        (Tone.POLITE, None),
        (None, None),
    ],
    ids=repr,
)
def test_only_the_librarys_own_labels_tell_about_reasoning(label: str | None, expected: bool | None) -> None:
    assert Grade(True, label).faithful is expected


def test_the_text_of_a_label_has_no_enum_around_it() -> None:
    for label in (Label.FAITHFUL, Tone.POLITE, "plain"):
        assert type(label_text(label)) is str
    assert label_text(Tone.POLITE) == "polite"


def test_a_grader_that_raises_is_named_with_the_beginning_of_its_message() -> None:
    def broken(prompt, response, example):
        raise ValueError("first\nsecond " + "x" * 1000)

    with pytest.raises(UserError, match=r"broken raised ValueError: first second xx") as caught:
        call_grader(broken, "a", "b", {})
    assert len(str(caught.value)) < 350
    assert isinstance(caught.value.__cause__, ValueError)


def test_ctrl_c_in_a_grader_is_not_a_mistake_of_the_grader() -> None:
    def slow(prompt, response, example):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_grader(slow, "a", "b", {})


ROWS = [
    {"prompt": "1+1?", "response": "1+1=2;#2", "example": {"answer": "2"}},
    {"prompt": "1+2?", "example": {"answer": "3"}},
    {"prompt": "third", "example": {}},
]


def test_the_check_calls_the_grader_on_two_rows_as_training_will() -> None:
    seen = []

    def noting(prompt, response, example):
        seen.append((prompt, response, example))
        return True

    check_grader(noting, ROWS)
    assert seen == [("1+1?", "1+1=2;#2", {"answer": "2"}), ("1+2?", "", {"answer": "3"})]


def test_the_check_finds_a_mistake_before_the_first_iteration() -> None:
    check_grader(grade_arithmetic, ROWS)
    with pytest.raises(UserError, match=r"raised TypeError"):
        check_grader(lambda prompt, response: True, ROWS)  # type: ignore[arg-type, misc]
    with pytest.raises(UserError, match=r"returned NoneType"):
        check_grader(lambda prompt, response, example: None, ROWS)  # type: ignore[arg-type, return-value]
    check_grader(grade_arithmetic, [])


@pytest.mark.parametrize("correct", ["no", 0.5, 1, None])
def test_a_grade_whose_correctness_is_no_bool_is_refused(correct: Any) -> None:
    with pytest.raises(UserError, match=r"expected a Grade whose `correct` is a bool"):
        as_grade(Grade(correct), grader=grade_arithmetic)


def test_a_bool_of_numpy_is_a_bool() -> None:
    assert as_grade(Grade(np.bool_(True)), grader=grade_arithmetic).correct is True  # type: ignore[arg-type]
