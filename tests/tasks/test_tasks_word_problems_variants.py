"""Questions with other numbers: the same text and the same kind of steps, and only where the steps are certain."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from ippo_lightning.tasks.word_problems.questions import Problem, load_problems
from ippo_lightning.tasks.word_problems.variants import variants_of

DIGITS = re.compile(r"[0-9.,]*[0-9]")


def variants(question: str, answer: str, count: int = 5) -> list[Problem]:
    return variants_of(Problem(question, Fraction(answer)), count=count, generator=random.Random(0))


@pytest.mark.parametrize(
    ("question", "answer", "solve"),
    [
        ("Ann has 23 pens and gives 5 to Bo. How many are left?", "18", lambda a, b: a - b),
        ("12 guests sit at tables of 3. How many tables?", "4", lambda a, b: a / b),
        ("A pen costs 2.5 and a book 4.25. How much are both?", "6.75", lambda a, b: a + b),
        ("Of 7 players 2 are ill, the others score 4 points each. How many points?", "20", lambda a, b, c: (a - b) * c),
    ],
)
def test_the_answer_is_that_of_the_new_numbers(question: str, answer: str, solve: object) -> None:
    found = variants(question, answer)
    assert len({variant.question for variant in found}) == 5
    for variant in found:
        numbers = [Fraction(text) for text in DIGITS.findall(variant.question)]
        assert variant.answer == solve(*numbers)  # type: ignore[operator]
        assert DIGITS.sub("N", variant.question) == DIGITS.sub("N", question)
        assert variant.question != question


def test_integers_stay_integers_and_no_result_is_negative() -> None:
    for question, answer in (("12 guests sit at tables of 3. How many?", "4"), ("5 of 8 eggs break. Left?", "3")):
        assert all(v.answer > 0 and v.answer.denominator == 1 for v in variants(question, answer, count=20))


def test_a_number_that_the_steps_do_not_use_stays() -> None:
    found = variants("In 1984 Ann had 23 pens and gave away 5. How many are left?", "18")
    assert found
    assert all(variant.question.startswith("In 1984 ") for variant in found)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        pytest.param("Ann has 4 rows of 2 chairs and adds 2. How many?", "10", id="an operand stands there twice"),
        pytest.param("Ann had 2 pens and got 2 more. How many?", "4", id="2+2 or 2*2"),
        pytest.param("Ann had 4 pens and lost 2. How many are left?", "2", id="4-2 or 4/2"),
        pytest.param("A dozen eggs and 5 more. How many?", "17", id="an operand in words"),
        pytest.param("Ann has 3 pens. How many?", "7", id="no way to the answer"),
        pytest.param("9 of 12 eggs break, and Bo lays 3 more. How many?", "6", id="a result equals a number"),
    ],
)
def test_a_question_whose_steps_are_not_certain_has_no_variant(question: str, answer: str) -> None:
    assert variants(question, answer) == []


def test_variants_depend_on_the_generator_only() -> None:
    question = "Ann has 23 pens and gives 5 to Bo. How many are left?"
    assert variants(question, "18") == variants(question, "18")
    assert variants(question, "18", count=0) == []


def test_variants_of_real_questions_keep_their_operators(shared_data: Path) -> None:
    folder = shared_data / "easy_arithmetic"
    if not any(folder.glob("mawps*.jsonl")):
        pytest.skip(f"no mawps*.jsonl in {folder}")
    generator = random.Random(0)
    problems = [problem for problem in load_problems(str(folder), "mawps")[:300] if problem.steps()]
    pairs = [(p, v) for p in problems for v in variants_of(p, count=2, generator=generator)]
    assert len(pairs) > len(problems)
    for problem, variant in pairs:
        before, after = problem.steps() or (), variant.steps() or ()
        assert [step.operator for step in after] == [step.operator for step in before]
        assert after[-1].result == variant.answer
