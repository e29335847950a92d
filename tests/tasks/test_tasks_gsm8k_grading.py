"""The calculator, the answer after `####`, and the grade on annotated steps, also on all of GSM8K."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Label, grade_gsm8k, gsm8k_answer
from ippo_lightning.tasks.gsm8k.expressions import ExpressionError, calculate, decimals

# --- the calculator --------------------------------------------------------------------------------------

literals = st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,4})?", fullmatch=True)
expressions = st.recursive(
    literals,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//"]), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
    ),
    max_leaves=8,
)


def by_python(text: str) -> Fraction | None:
    """The value by Python's own parser, on fractions."""
    try:
        return Fraction(eval(re.sub(r"([0-9.]+)", r"Fraction('\1')", text), {"Fraction": Fraction}))
    except ZeroDivisionError:
        return None


@given(expressions)
def test_an_expression_has_the_value_that_python_gives_it(text: str) -> None:
    if len(text) <= 200 and text.count("-") + text.count("(") < 15:
        assert calculate(text) == by_python(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2", Fraction(24)),
        ("2+3*4", Fraction(14)),
        ("(2+3)*4", Fraction(20)),
        ("10-4-3", Fraction(3)),
        ("24/4/2", Fraction(3)),
        ("7//2", Fraction(3)),
        ("-7//2", Fraction(-4)),
        ("+30+46", Fraction(76)),
        ("3*+6", Fraction(18)),
        ("2*-3", Fraction(-6)),
        ("--3", Fraction(3)),
        (".5+5.", Fraction(11, 2)),
        (" 1 + 2 ", Fraction(3)),
        ("0.1+0.2", Fraction(3, 10)),
        ("1/0", None),
        ("1//(2-2)", None),
    ],
)
def test_the_value_of(text: str, value: Fraction | None) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1+",
        "*2",
        "1 2",
        "(1",
        "1)",
        "()",
        "1..2",
        ".",
        "1e3",
        "2**3",
        "2^3",
        "x",
        "1,000",
        "$5",
        "\u0663+1",
        "__import__('os')",
        "1" * 19,
        "1" * 201,
        "(" * 21 + "1" + ")" * 21,
        "-" * 30 + "1",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        calculate(text)


@given(st.text("0123456789.+-*/() ", max_size=210) | st.text(max_size=30))
def test_any_text_has_a_value_or_none_or_is_refused(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert calculate(text) is None or isinstance(calculate(text), Fraction)


def test_brackets_side_by_side_do_not_add_up_to_depth() -> None:
    assert calculate("+".join(["(1)"] * 40)) == 40


@pytest.mark.parametrize(
    ("text", "places"), [("3", 0), ("3.", 0), (" -3.14 ", 2), ("+.5", 1), ("3/4", None), ("", None), ("3.1.4", None)]
)
def test_decimals_of_a_plain_number(text: str, places: int | None) -> None:
    assert decimals(text) == places


# --- the answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "answer"),
    [
        (" 72", "72"),
        ("72", "72"),
        (" 1,000", "1000"),
        (" 109,200,000.", "109200000"),
        (" $5", "5"),
        (" -$5", "-5"),
        (" $-5.50", "-5.5"),
        (" +3", "3"),
        (" 007", "7"),
        (" .50", "0.5"),
        (" 72.00", "72"),
        (" -0.0", "0"),
        (" 100", "100"),
        (" 0", "0"),
        (" 72 dollars", "72"),
        (" 50%", "50"),
        (" 72\nand so on", "72"),
        (" 72**", "72"),
        (" " + "9" * 40, "9" * 40),
        (" 1" + "0" * 35 + ".10", "1" + "0" * 35 + ".1"),
        ("", None),
        (" x 72", None),
        (" --5", None),
        (" ,", None),
        (" .", None),
        (" 1.2.3", None),
        (" 1/2", None),
        (" 1 / 2", None),
        (" 2^3", None),
        (" 1e3", None),
        (" \u0667\u0662", None),
        (" " + "9" * 41, None),
        (" " * 100 + "72", None),
    ],
)
def test_the_number_after_the_mark(tail: str, answer: str | None) -> None:
    assert gsm8k_answer(f"steps\n####{tail}") == answer


def test_the_last_mark_counts_and_without_one_there_is_no_answer() -> None:
    assert gsm8k_answer("#### 1\n#### 2") == "2"
    assert gsm8k_answer("#### 1\n####") is None
    assert gsm8k_answer("the answer is 72") is None


@given(st.decimals(-(10**12), 10**12, places=3))
def test_equal_numbers_have_one_form(number: object) -> None:
    canonical = gsm8k_answer(f"#### {number:f}")
    assert canonical is not None
    assert Fraction(canonical) == Fraction(str(number))
    assert gsm8k_answer(f"#### {number:,f}000") == gsm8k_answer(f"#### {canonical}") == canonical


# --- the grade -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72", Label.FAITHFUL),
        ("<<3/4=3/4>> <<144/2=72>>\n#### 72.0", Label.FAITHFUL),
        ("<<1/3=0.33>> <<2/3=.667>> <<1/8=0.13>> <<1/8=0.12>>#### 72", Label.FAITHFUL),
        ("so it is 72\n#### 72", Label.SHORTCUT),
        ("#### 72", Label.SHORTCUT),
        ("<<48/2=25>>25\n#### 72", Label.FALSE_POSITIVE),
        ("<<48/2=24>>24 <<48+24=73>>\n#### 72", Label.FALSE_POSITIVE),
        ("<<2/3=0.66>>\n#### 72", Label.FALSE_POSITIVE),
        ("<<7/2=3>> <<7/2=4>>\n#### 72", Label.FALSE_POSITIVE),
        ("<<1/0=72>>\n#### 72", Label.FALSE_POSITIVE),
        ("<<two times 36=72>>\n#### 72", Label.NONSENSE),
        ("<<72>>\n#### 72", Label.NONSENSE),
        ("<<>>\n#### 72", Label.NONSENSE),
        ("<<1=1=1>>\n#### 72", Label.NONSENSE),
        ("<<48/2=25>> <<x=1>>\n#### 72", Label.NONSENSE),
        ("<<48/2=24\n#### 72", Label.NONSENSE),
        ("48/2=24>>\n#### 72", Label.NONSENSE),
        ("<<<48/2=24>>>\n#### 72", Label.FAITHFUL),
        ("<<48/2=24>>24\n#### 73", Label.WRONG_ANSWER),
        ("<<48/2=24>>24", Label.WRONG_ANSWER),
        ("", Label.WRONG_ANSWER),
    ],
)
def test_the_label_of(response: str, label: Label) -> None:
    grade = grade_gsm8k("", response, {"answer": "72"})
    assert grade.label is label
    assert grade.correct == (label is not Label.WRONG_ANSWER)
    assert grade_gsm8k("", response.encode(), {"answer": "72"}) == grade


@given(st.text(max_size=80) | st.text("0123456789<>=#+-*/(). ", max_size=80) | st.binary(max_size=80))
def test_every_text_gets_a_label(response: str | bytes) -> None:
    assert grade_gsm8k("", response, {"answer": "7"}).label in Label


@pytest.mark.parametrize(
    "piece", ["<<", ">>", "<<(", "<<1+1=2>>", "#### ", "<<" + "(" * 30, "<<9*9*9*9*9*9*9*9*9*9*9=1>>", "-", "9"]
)
@pytest.mark.parametrize("length", [16_000, 10_000_000])
def test_long_texts_take_milliseconds(piece: str, length: int) -> None:
    response = piece * (length // len(piece)) + "#### 72"
    start = time.perf_counter()
    grade_gsm8k("", response, {"answer": "72"})
    assert time.perf_counter() - start < 0.5  # measured: at most 0.03 s; quadratic backtracking would take seconds


def test_more_than_16384_characters_are_a_wrong_answer() -> None:
    for length in (16384, 16385):
        assert grade_gsm8k("", "#### 72".rjust(length), {"answer": "72"}).correct == (length == 16384)


def test_an_example_without_reference_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"example\.answer: None is not text"):
        grade_gsm8k("", "#### 72", {})


@pytest.mark.parametrize(("split", "records"), [("train", 7473), ("test", 1319)])
def test_every_solution_of_gsm8k_is_right_and_faithful_or_has_no_annotation(
    shared_data: Path, split: str, records: int
) -> None:
    labels: Counter[Label] = Counter()
    with (shared_data / "gsm8k" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)["answer"]
            label = grade_gsm8k("", answer, {"answer": gsm8k_answer(answer)}).label
            assert (label is Label.SHORTCUT) == ("<<" not in answer), answer
            labels[label] += 1
    assert labels[Label.FAITHFUL] + labels[Label.SHORTCUT] == labels.total() == records


def test_a_digit_too_many_in_an_annotation_of_gsm8k_is_found(shared_data: Path) -> None:
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line, _ in zip(lines, range(500), strict=False)]
    for answer in (answer for answer in answers if "<<" in answer):
        changed = answer[: answer.index(">>")] + "9" + answer[answer.index(">>") :]
        label = grade_gsm8k("", changed, {"answer": gsm8k_answer(answer)}).label
        assert label is Label.FALSE_POSITIVE, changed
