"""Answers of different spelling that are the same, and answers of similar spelling that are not."""

from __future__ import annotations

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import same_answer
from ippo_lightning.tasks.answers import equivalence

needs_math_verify = pytest.mark.usefixtures("math_verify")

SAME = [
    (r"\frac{1}{2}", "0.5"),
    ("1/2", r"\dfrac12"),
    (r"\{1, 2\}", r"\{2,1\}"),
    ("14,16", "16, 14"),
    (r"10\%", "10"),
    (r"10\text{ cm}", "10"),
    (r"10", r"10\,\mathrm{cm}^2"),
    ("5 cm", "5"),
    (r"90^\circ", "90"),
    (r"\$18.90", "18.9"),
    ("x=5", "5"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"(-\infty,3)", "x<3"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"2\sqrt2", r"\sqrt{8}"),
    (r"\text{Friday}", "Friday"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2.0\end{pmatrix}"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)"),
    (r"\sin^2x+\cos^2x", "1"),
    ("2x+1=y", "y=2x+1"),
    ("AB=12", "AB = 12.0"),
    ("10 feet", r"10\text{ feet}"),
    ("no  solution", "no solution"),
    (r"\ln 4", r"2\ln 2"),
    ("x^2+20+4x=0", "x^{2}+4 x+20=0"),
]
OTHER = [
    (r"\frac{1}{3}", "0.5"),
    (r"\{1,3\}", r"\{1,2\}"),
    ("(2,1)", "(1,2)"),
    ("[1,2)", "(1,2)"),
    ("-5", "5"),
    ("3t", "3"),
    ("x=5", "6"),
    ("x>3", "x<3"),
    ("11", "12"),
    (r"\sqrt{7}", r"\sqrt{8}"),
    (r"\text{Monday}", "Friday"),
    # neither has a real solution
    ("x^{2}+5 x+20=0", "x^{2}+4 x+20=0"),
    ("-(1,2)", "(1,2)"),
    ("40_8", "40_9"),
    (r"10\text{ m}", r"10\text{ cm}"),
    (r"30\text{ mph}, 47\text{ mph}", r"30\text{ mph}, 40\text{ mph}"),
    (r"\frac{Q+\mathrm{PQ}_{8}}{P}", r"\frac{Q+\mathrm{PQ}_{1}}{P}"),
    ("Solution is: $[x=2, y=3]$", "Solution is: $[x=2, y=4]$"),
    ("Therefore, it takes $1+1=2$ hours", "Therefore, it takes $1+2=2$ hours"),
    ("", "1"),
    ("", ""),
]


@needs_math_verify
@pytest.mark.parametrize(("given", "gold"), SAME)
def test_another_spelling_is_the_same_answer(given: str, gold: str) -> None:
    assert same_answer(given, gold, "boxed")


@needs_math_verify
@pytest.mark.parametrize(("given", "gold"), OTHER)
def test_another_value_is_another_answer(given: str, gold: str) -> None:
    assert not same_answer(given, gold, "boxed")


@pytest.mark.parametrize("kind", ["hash", "number"])
@pytest.mark.parametrize(
    ("given", "gold", "same"),
    [("1,000", "1000", True), ("2.50", "2.5", True), ("1/2", "0.5", True), ("12", "13", False), ("-1", "1", False)],
)
def test_numbers_are_compared_exactly(kind, given: str, gold: str, same: bool) -> None:
    assert same_answer(given, gold, kind) is same


def test_ratios_and_times_are_texts() -> None:
    assert same_answer("3:45", "3:45", "number")
    assert not same_answer("3:46", "3:45", "number")
    assert not same_answer("3", "3:45", "number")


def test_options_are_compared_as_texts() -> None:
    assert same_answer(" Bloody  mess.", "bloody mess", "option")
    assert not same_answer("bloody", "bloody mess", "option")


@pytest.mark.parametrize("kind", ["hash", "boxed", "option", "number"])
def test_no_answer_is_no_right_one(kind) -> None:
    assert not same_answer(None, "1", kind)


@pytest.mark.parametrize(
    ("given", "gold"),
    [("12", "13"), (r"\frac{1}{2}", r"\dfrac{1}{2}"), ("x + 1", "x+1"), ("{" * 10**4 + "}" * 10**4, "1")],
)
def test_what_is_plain_needs_no_other_process(monkeypatch, given: str, gold: str) -> None:
    monkeypatch.setattr(equivalence, "are_equal", lambda *_: pytest.fail("asked"))
    same_answer(given, gold, "boxed")


def test_another_kind_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"answer kind: 'letter' is unknown"):
        same_answer("a", "a", "letter")
