"""Graders by the kind of answer, also on the right answers of real data and on what is made of them."""

from __future__ import annotations

from pathlib import Path

import answers  # benchmarks/answers.py
import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import AnswerGrader, Grade, call_grader, grade_hash, grade_number, grade_option, named_grader
from ippo_lightning.tasks.answers import GRADERS
from ippo_lightning.tasks.answers.extraction import ANSWER_KINDS

SAMPLE = 40
ACCEPTED, REJECTED = 0.995, 0.99


def test_a_grader_of_each_kind_has_its_name() -> None:
    assert set(GRADERS) == set(ANSWER_KINDS)
    for kind in ANSWER_KINDS:
        assert named_grader(kind).kind == kind
    with pytest.raises(UserError, match=r"grader\.kind: 'letter' is unknown; expected one of hash, boxed, option"):
        named_grader("letter")


def test_a_right_response_votes_with_the_text_of_the_right_answer() -> None:
    assert grade_hash("?", "#### 1,000.0", {"answer": "1000"}) == Grade(True, None, "1000")
    assert grade_number("?", "It is 0.50.", {"answer": "1/2"}) == Grade(True, None, "1/2")
    assert grade_option("?", "Answer: B", {"answer": "cake", "options": ["tea", "cake"]}) == Grade(True, None, "cake")


def test_a_wrong_response_has_its_own_answer() -> None:
    assert grade_hash("?", "#### 7", {"answer": "8"}) == Grade(False, None, "7")
    assert grade_hash("?", "seven", {"answer": "8"}) == Grade(False, None, None)


def test_the_answer_of_a_file_may_be_a_number() -> None:
    assert grade_number("?", "43 shells", {"answer": 43.0}).correct
    assert grade_number("?", "43 shells", {"answer": 43}).correct


@pytest.mark.parametrize("answer", [None, "", "  ", True, ["1"]])
def test_an_example_without_an_answer_is_named(answer: object) -> None:
    with pytest.raises(UserError, match=r"^example\.answer: .* is no answer; expected text or a number"):
        call_grader(GRADERS["hash"], "?", "#### 1", {"answer": answer})


def test_options_must_be_a_list() -> None:
    with pytest.raises(UserError, match=r"^example\.options: 'a b' is wrong; expected a list of texts"):
        call_grader(GRADERS["option"], "?", "a", {"answer": "a", "options": "a b"})


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("2 + 3 = 5\n#### 5", "faithful"),
        ("<<2+3=5>>\n#### 5", "faithful"),
        ("2 + 3 = 6\n#### 5", "false_positive"),
        ("#### 5", "shortcut"),
        ("<<2+=5>>\n#### 5", "nonsense"),
        ("4 + 1 = 5\n#### 5", "nonsense"),
        ("2 + 3 = 5\n#### 6", "wrong_answer"),
    ],
)
def test_steps_give_the_labels_of_the_arithmetic_task(response: str, label: str) -> None:
    grader = AnswerGrader("hash", steps="both", known_numbers=True)
    grade = grader("?", response, {"answer": "5", "question": "Two ducks and 3 hens?"})
    assert grade.label == label
    assert grade.correct is (label != "wrong_answer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "box"}, r"grader\.kind: 'box' is unknown"),
        (
            {"kind": "hash", "steps": "all"},
            r"grader\.steps: 'all' is unknown; expected one of annotations, plain, both",
        ),
        ({"kind": "hash", "known_numbers": True}, r"grader\.known_numbers: true without steps has no effect"),
    ],
)
def test_a_setting_that_is_wrong_is_named(arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        AnswerGrader(**arguments)


def test_known_numbers_need_the_question() -> None:
    grader = AnswerGrader("hash", steps="both", known_numbers=True)
    with pytest.raises(UserError, match=r"example\.question: missing; grader\.known_numbers needs the text"):
        grader("?", "#### 5", {"answer": "5"})


# --- real data -----------------------------------------------------------------------------------------------


def require_figures(name: str, folder: Path, per_set: int | None) -> None:
    figures = answers.figures_of(name, folder, per_set=per_set)
    # Of ASDiv, names, ordinals and times of day are no numbers: they are not graded by this kind.
    refused = [gold for gold in figures.refused if name != "asdiv" or not gold.replace(".", "").isdigit()]
    if name == "asdiv":
        assert refused == figures.refused
    else:
        assert len(figures.accepted) >= ACCEPTED * (len(figures.accepted) + len(refused)), refused
    made = figures.rejected + len(figures.mistaken)
    assert figures.rejected >= REJECTED * made, figures.mistaken
    assert figures.rewritten >= ACCEPTED * (figures.rewritten + len(figures.missed)), figures.missed


@pytest.mark.parametrize("name", answers.SETS)
def test_right_answers_of_real_data_are_accepted_and_wrong_ones_rejected(
    math_verify: None, shared_data: Path, name: str
) -> None:
    require_figures(name, shared_data, SAMPLE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", answers.SETS)
def test_all_right_answers_of_real_data_are_accepted_and_wrong_ones_rejected(
    math_verify: None, shared_data: Path, name: str
) -> None:
    require_figures(name, shared_data, None)
