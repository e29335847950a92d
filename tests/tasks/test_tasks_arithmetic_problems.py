"""Problems are drawn without repetition, and demonstrations are of the kind of their label."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import UNFAITHFUL_KINDS, Label, grade_arithmetic
from ippo_lightning.tasks.arithmetic.problems import ProblemSpace, demonstration_rows, read_kinds


def space(**changes: object) -> ProblemSpace:
    settings = {"min_terms": 2, "max_terms": 4, "min_number": 1, "max_number": 20, "operators": "+-"}
    return ProblemSpace(**{**settings, **changes})


@given(st.integers(2, 3), st.integers(0, 3), st.sampled_from(["+", "+-", "*+-"]))
def test_the_size_of_the_space_is_that_of_its_enumeration(num_terms: int, max_number: int, operators: str) -> None:
    numbers = range(max_number + 1)
    listed = len(
        list(itertools.product(*[numbers] * num_terms)) * len(list(itertools.product(*[operators] * (num_terms - 1))))
    )
    assert space(min_number=0, max_number=max_number, operators=operators).size(num_terms) == listed


def test_every_problem_of_a_small_space_can_be_drawn_and_no_more() -> None:
    small = space(max_terms=3, max_number=2)
    total = small.size(2) + small.size(3)
    assert total == 8 + 32
    assert len(set(small.draw(total, random.Random(0)))) == total
    with pytest.raises(UserError, match=r"41 different problems are needed, and only 40 exist"):
        small.draw(total + 1, random.Random(0))


def test_the_number_of_terms_is_uniform_until_the_short_problems_run_out() -> None:
    lengths = Counter(len(problem.terms) for problem in space().draw(1200, random.Random(0)))
    assert set(lengths) == {2, 3, 4}
    assert all(abs(count - 400) < 5 * math.sqrt(1200 * 2 / 9) for count in lengths.values())  # five standard deviations
    lengths = Counter(len(problem.terms) for problem in space().draw(6000, random.Random(0)))
    assert 700 < lengths[2] <= 800
    assert abs(lengths[3] - lengths[4]) < 5 * math.sqrt(5200) + 100  # a few problems of three terms are drawn again


def test_a_seed_draws_the_same_problems_in_every_release() -> None:
    """A model fine-tuned with one release must not meet its training problems as test problems of the next one."""
    drawn = space().draw(4, random.Random(0))
    assert [problem.prompt for problem in drawn] == ["14-2-9?", "16+12+19?", "5-4+20?", "4-3+11?"]


def test_problems_stay_within_their_bounds() -> None:
    for problem in space(min_terms=3, max_terms=5, min_number=4, max_number=6, operators="*-").draw(
        300, random.Random(1)
    ):
        assert 3 <= len(problem.terms) <= 5
        assert set(problem.terms) <= {4, 5, 6}
        assert set(problem.operators) <= {"*", "-"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"min_terms": 1}, "min_terms"),
        ({"min_terms": 5}, "min_terms"),
        ({"min_number": -1}, "min_number"),
        ({"min_number": 21}, "min_number"),
        ({"operators": ""}, "operators"),
        ({"operators": "+/"}, "operators"),
        ({"operators": "++"}, "operators"),
        ({"operators": "*", "max_number": 10**5}, "max_number"),
        ({"max_number": 10**18}, "max_number"),
    ],
)
def test_a_wrong_bound_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.{field}: ") as caught:
        space(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unfaithful_fraction", [0.0, 0.25, 0.4, 1.0])
def test_demonstrations_have_the_kind_of_their_label_and_the_fraction_is_exact(unfaithful_fraction: float) -> None:
    problems = space().draw(600, random.Random(0))
    rows = demonstration_rows(
        problems, unfaithful_fraction=unfaithful_fraction, unfaithful_kinds=read_kinds(None), generator=random.Random(0)
    )
    labels = [grade_arithmetic(row["prompt"], row["response"], row["example"]).label for row in rows]
    assert labels == [row["example"]["label"] for row in rows]
    assert sum(label is not Label.FAITHFUL for label in labels) == round(600 * unfaithful_fraction)
    assert [row["prompt"] for row in rows] == [problem.prompt for problem in problems]


def test_kinds_come_by_their_weights() -> None:
    kinds = read_kinds({"shortcut": 3, "nonsense": 1.0, "false_positive": 0})
    rows = demonstration_rows(
        space().draw(2000, random.Random(0)),
        unfaithful_fraction=1.0,
        unfaithful_kinds=kinds,
        generator=random.Random(0),
    )
    counts = Counter(row["example"]["label"] for row in rows)
    assert set(counts) == {"shortcut", "nonsense"}
    assert abs(counts["shortcut"] - 1500) < 5 * math.sqrt(2000 * 3 / 16)


def test_without_weights_all_kinds_are_equal() -> None:
    assert read_kinds(None) == dict.fromkeys(UNFAITHFUL_KINDS, 1.0)


@pytest.mark.parametrize(
    "kinds", [{}, {"faithful": 1.0}, {"typo": 1.0}, {"shortcut": -1.0}, {"shortcut": 0.0}, {"shortcut": math.nan}]
)
def test_wrong_kinds_are_the_users_mistake(kinds: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^task\.unfaithful_kinds: "):
        read_kinds(kinds)
