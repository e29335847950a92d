"""Steps in annotations and in running text, and the label that they give a right answer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.tasks import Label, label_steps

RIGHT = [
    "2+3=5",
    "She has 2 + 3 = 5 ducks.",
    "So 1,000 * 2 = 2,000.",
    "$20 / 3 = $6.67 each",
    "3 x 4 = 12 and 3 \u00d7 4 = 12",
    "10 \u2013 4 = 6",
    "(2+3)*4 = 20",
    "First, 2+3=5, then 5*2=10.",
    "2+3=5+1=6",
    "5 - 8 = -3",
]
WRONG = ["2+3=6", "She has 2 + 3 = 6 ducks.", "$20 / 3 = $6.66", "2+3=5 and 5+1=7", "4/0=4", "1,000 + 1 = 1,002"]
NO_STEP = [
    "the answer is 5",
    "x = 5",
    "3n + 2 = 14",
    "12 miles / 4 mph = 3 hours",
    "4 apples x 2 + 1 = 9",
    "5% of 20 = 1",
    "50% * 50% = 25%",
    "3 1/2 - 2 = 1 1/2",
    "X*6 + 9 = 87",
    "=",
]


@pytest.mark.parametrize("form", ["plain", "both"])
@pytest.mark.parametrize("text", RIGHT)
def test_right_steps_in_running_text_are_faithful(form, text: str) -> None:
    assert label_steps(text, form) is Label.FAITHFUL


@pytest.mark.parametrize("form", ["plain", "both"])
@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_step_in_running_text_is_a_false_positive(form, text: str) -> None:
    assert label_steps(text, form) is Label.FALSE_POSITIVE


@pytest.mark.parametrize("text", NO_STEP)
def test_what_is_no_expression_of_numbers_alone_is_no_step(text: str) -> None:
    assert label_steps(text, "plain") is Label.SHORTCUT


@pytest.mark.parametrize(
    ("text", "form", "label"),
    [
        ("2+3 = <<2+3=5>>5", "annotations", Label.FAITHFUL),
        ("2+3 = <<2+3=5>>5", "plain", Label.FAITHFUL),
        ("2+3 = <<2+3=5>>6", "annotations", Label.FAITHFUL),
        ("2+3 = <<2+3=5>>6", "both", Label.FALSE_POSITIVE),
        ("2+3 = <<2+3=6>>5", "plain", Label.FAITHFUL),
        ("2+3 = <<2+3=6>>5", "both", Label.FALSE_POSITIVE),
        ("2+3=6", "annotations", Label.SHORTCUT),
        ("<<2+3=5", "both", Label.NONSENSE),
        ("<<2+3=5", "plain", Label.FAITHFUL),
        ("<<two=2>> 2+3=5", "both", Label.NONSENSE),
    ],
)
def test_the_form_decides_which_steps_count(text: str, form, label: Label) -> None:
    assert label_steps(text, form) is label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("2+3=5; 5*2=10", Label.FAITHFUL),
        ("2*12=24", Label.FAITHFUL),
        ("7+3=10", Label.NONSENSE),
        ("2+3=6; 6*2=12", Label.FALSE_POSITIVE),
        ("5*2=10; 2+3=5", Label.NONSENSE),
    ],
)
def test_with_a_question_each_number_comes_from_it_or_from_an_earlier_step(text: str, label: Label) -> None:
    assert label_steps(text, "both", question="Two ducks, 3 hens and a dozen eggs?") is label


@given(st.integers(0, 999), st.sampled_from("+-*"), st.integers(0, 999), st.integers(-3, 3))
def test_a_step_is_right_if_python_finds_the_same(left: int, sign: str, right: int, slip: int) -> None:
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    text = f"Now {left} {sign} {right} = {result + slip}, so"
    assert label_steps(text, "plain") is (Label.FALSE_POSITIVE if slip else Label.FAITHFUL)


@pytest.mark.parametrize("piece", ["1+1=2 ", "=", "1", "1+", "(", "<<", "<<1=1>>", " ", "x", "9,999", "1 ="])
def test_a_long_text_takes_time_in_its_length_alone(piece: str) -> None:
    text = piece * (2**16 // len(piece))
    start = time.process_time()
    label_steps(text, "both", question="1")
    assert time.process_time() - start < 8


def test_the_solutions_of_gsm8k_have_right_steps_in_running_text_too(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [label_steps(json.loads(line)["answer"].rpartition("####")[0], "both") for line in lines]
    # Both are errors of the data: `364 / 4 = 273` and `$32 - $20 = $300`.
    assert labels.count(Label.FALSE_POSITIVE) == 2
    assert labels.count(Label.FAITHFUL) == 1302
    assert labels.count(Label.SHORTCUT) == 15
