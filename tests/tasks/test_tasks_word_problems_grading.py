"""Word problems: numbers of a question, steps found by search, and grades of responses."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.grades import Label
from ippo_lightning.tasks.word_problems.grading import grade_word_problem, parse_steps, write_response
from ippo_lightning.tasks.word_problems.numbers import numbers_of, parse_number, write_number
from ippo_lightning.tasks.word_problems.search import find_steps
from ippo_lightning.tasks.word_problems.unfaithful import unfaithful_response

QUESTION = "Sam had 23 apples, got five more and gave 12 away. How many are left?"
EXAMPLE = {"question": QUESTION, "answer": "16"}


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("Two marbles and 2 more", ["2", "2"]),
        ("1,250 sheep, 3, 4 and 5.", ["1250", "3", "4", "5"]),
        ("It costs $7.25 and .5 hours; 10% off", ["7.25", "0.5", "10"]),
        ("twenty-five boys, thirty two girls and forty", ["25", "32", "40"]),
        ("a dozen eggs, twice a hundred", ["12", "2", "100"]),
        ("someone weighed a stone; none often", []),
        ("item 123456789012345678901234567890", []),
        ("", []),
    ],
)
def test_numbers_are_read_in_digits_and_words(question: str, numbers: list[str]) -> None:
    assert numbers_of(question) == [Fraction(number) for number in numbers]


@pytest.mark.parametrize("text", ["", "-", "1e3", "0x10", "1/2", "1.2.3", "٣", "1" * 13, "nan", "1_000", " 5"])
def test_other_text_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [("28", "28"), ("5/2", "2.5"), ("-1/8", "-0.125"), ("1/3", None), ("0", "0"), ("1/10000000", None)],
)
def test_a_number_is_written_with_the_decimals_that_it_needs(value: str, text: str | None) -> None:
    assert write_number(Fraction(value)) == text
    assert text is None or parse_number(text) == Fraction(value)


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("23+5=28\n28-12=16\n#### 16", "faithful"),
        (" 23 + 5 = 28 \n28 - 12 = 16\n####16 ", "faithful"),
        ("23-12=11\n11+5=16\n#### 16.0", "faithful"),
        ("23+5=29\n29-12=16\n#### 16", "false_positive"),
        ("23+5=28\n#### 16", "false_positive"),
        ("23+5=28\n28-12=17\n#### 16", "false_positive"),
        ("#### 16", "shortcut"),
        ("\n#### 16", "shortcut"),
        ("40-24=16\n#### 16", "nonsense"),
        ("23+5=28\n28-13=15\n#### 16", "nonsense"),
        ("28-12=16\n23+5=28\n#### 16", "nonsense"),
        ("He has 16 left.\n#### 16", "nonsense"),
        ("23+5-12=16\n#### 16", "nonsense"),
        ("23+5=28;28-12=16\n#### 16", "nonsense"),
        ("\n".join(["23+5=28"] * 17) + "\n#### 16", "nonsense"),
        ("23+5=28\n28-12=16\n#### 17", "wrong_answer"),
        ("23+5=28\n28-12=16", "wrong_answer"),
        ("#### 16 apples", "wrong_answer"),
        ("#### 16\n#### 3", "wrong_answer"),
        ("", "wrong_answer"),
        ("#### " + "9" * 5000, "wrong_answer"),
    ],
)
def test_a_response_has_the_label_of_its_reasoning(response: str, label: str) -> None:
    grade = grade_word_problem("ignored", response, EXAMPLE)
    assert grade.label == label
    assert grade.correct == (label != "wrong_answer")
    assert grade_word_problem("", response.encode(), EXAMPLE) == grade


@pytest.mark.parametrize("division", ["23/0=0\n#### 16", "5/23=0.217391\n#### 16"])
def test_a_division_is_exact_or_wrong(division: str) -> None:
    question = {"question": "23 and 5 and 0", "answer": "16"}
    assert grade_word_problem("", division, question).label == "false_positive"


@pytest.mark.parametrize(
    "example", [{}, {"question": QUESTION}, {"question": QUESTION, "answer": "many"}, {"answer": "1"}]
)
def test_an_example_without_question_or_number_is_an_error(example: dict[str, str]) -> None:
    with pytest.raises(UserError, match="lacks question or a number as answer"):
        grade_word_problem("", "#### 1", example)


@pytest.mark.parametrize("hostile", ["1" * 4096, "####" * 1024, "1+1=2\n" * 600, f"{'9' * 12}*{'9' * 12}=1\n" * 300])
def test_hostile_text_is_graded_at_once(hostile: str) -> None:
    begin = time.perf_counter()
    assert not grade_word_problem("", hostile, EXAMPLE).correct
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("numbers", "answer", "steps"),
    [
        ("23 5 12", "16", ["23+5=28", "28-12=16"]),
        ("23 5", "18", ["23-5=18"]),
        ("5 23", "18", ["23-5=18"]),
        ("2 2", "0", ["2-2=0"]),
        ("4 10", "2.5", ["10/4=2.5"]),
        ("3 4 5", "60", ["3*4=12", "12*5=60"]),
        ("10 3", "30", ["10*3=30"]),
        ("1 3", "0.333333", None),
        ("7", "7", None),
        ("3 5", "-2", None),
        ("", "0", None),
    ],
)
def test_search_finds_the_shortest_steps(numbers: str, answer: str, steps: list[str] | None) -> None:
    found = find_steps([Fraction(number) for number in numbers.split()], Fraction(answer))
    assert (None if found is None else [str(step) for step in found]) == steps


def test_nonsense_starts_from_a_number_that_the_question_lacks() -> None:
    steps = find_steps([Fraction(2), Fraction(3)], Fraction(5))
    assert steps is not None
    numbers = [Fraction(number) for number in range(2, 98)]
    response = unfaithful_response(
        steps, kind=Label.NONSENSE, numbers=numbers, answer=Fraction(5), generator=random.Random(0)
    )
    assert response == "98+98=196\n#### 5"


def test_what_is_written_is_read_again() -> None:
    found = find_steps(numbers_of(QUESTION), Fraction(16))
    assert found is not None
    body, _, _ = write_response(found, Fraction(16)).rpartition("\n")
    assert parse_steps(body) == list(found)
