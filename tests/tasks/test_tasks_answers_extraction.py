"""The final answer of a response, for each form in which tasks ask for it."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import extract_answer
from ippo_lightning.tasks.answers.extraction import ANSWER_KINDS, as_number, write_fraction

OPTIONS = ["bloody mess", "pleasure", "being imprisoned", "feeling of guilt", "cake"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+1=2\n#### 2", "2"),
        ("#### 3 #### $1,000.50 dollars", "1000.5"),
        ("#### x+1\nand more", "x+1"),
        ("no mark: 2", None),
        ("####", None),
    ],
)
def test_hash_is_what_stands_behind_the_last_mark(text: str, answer: str | None) -> None:
    assert extract_answer(text, "hash") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{2}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x : \text{a } \} \right.}", r"\left\{ x : \text{a } \} \right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{1} and then \boxed{2", None),
        (r"\boxed{}", None),
        ("5", None),
    ],
)
def test_boxed_is_the_content_of_the_last_box_by_its_braces(text: str, answer: str | None) -> None:
    assert extract_answer(text, "boxed") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It takes 3 hours and 15 minutes.", "15"),
        ("That is $1,234.50.", "1234.5"),
        ("16-3", "3"),
        ("It is -3", "-3"),
        ("x = \u22123", "-3"),
        ("3/4 of it", "0.75"),
        ("2/6", "1/3"),
        ("at 3:45 p.m.", "3:45"),
        ("1/0", None),
        ("version 1.2.3", None),
        ("none", None),
    ],
)
def test_number_is_the_last_number_of_the_text(text: str, answer: str | None) -> None:
    assert extract_answer(text, "number") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A mess is bloody.\nThe answer is bloody mess.", "bloody mess"),
        ("The answer is cake. No: the answer is: Bloody  Mess", "bloody mess"),
        ("reasons\nPleasure", "pleasure"),
        ("#### (E)", "cake"),
        ("Answer: B.", "pleasure"),
        ("Answer: b) pleasure", "pleasure"),
        ("Answer: B) cake", "B) cake"),
        ("Answer: F", "F"),
        ("the answer is bloody mess or cake", "bloody mess or cake"),
        ("\n\n", None),
    ],
)
def test_option_is_one_of_the_options_by_its_text_or_its_letter(text: str, answer: str | None) -> None:
    assert extract_answer(text, "option", OPTIONS) == answer


def test_the_text_of_an_option_counts_before_a_letter() -> None:
    assert extract_answer("Answer: B", "option", ["b", "a"]) == "b"


@given(st.fractions(-(10**12), 10**12, max_denominator=10**4))
def test_a_number_is_written_as_it_is_read(value: Fraction) -> None:
    assert as_number(write_fraction(value)) == value


@pytest.mark.parametrize("kind", ANSWER_KINDS)
@pytest.mark.parametrize("piece", ["{", r"\boxed{", "}", "9", "9,", "####", "answer is ", "\n", "9/", ":9", "-", "\\"])
def test_a_long_response_takes_time_in_its_length_alone(kind, piece: str) -> None:
    text = piece * (2**18 // len(piece))
    start = time.process_time()
    extract_answer(text, kind)
    extract_answer(text, kind, OPTIONS)
    assert time.process_time() - start < 4


def test_a_quarter_of_a_gigabyte_is_not_read() -> None:
    text = "#" * 2**28
    start = time.process_time()
    assert [extract_answer(text, kind) for kind in ANSWER_KINDS] == [None] * 4
    assert time.process_time() - start < 1


def test_a_long_answer_is_none() -> None:
    assert extract_answer(r"\boxed{" + "x" * 1001 + "}", "boxed") is None


def test_another_kind_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"answer kind: 'letter' is unknown; expected hash, boxed, option, number"):
        extract_answer("a", "letter")
