"""The arithmetic task: no problem in two splits, the same rows for the same seed, and its mistakes are named."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import ArithmeticTask, Task, grade_arithmetic

SIZES = {
    "num_train": 90,
    "num_validation": 20,
    "num_test": 30,
    "num_demonstrations": 50,
    "num_influence_demonstrations": 10,
}
SPLITS = ("prompts", "demonstrations", "validation", "test", "influence")


def task(**changes: Any) -> ArithmeticTask:
    return ArithmeticTask(**{**SIZES, **changes})


def rows(made: ArithmeticTask) -> dict[str, list[dict[str, Any]]]:
    return {split: list(made.rows(split)) for split in SPLITS}


def prompts(made: ArithmeticTask, split: str) -> list[str]:
    return [row["prompt"] for row in made.rows(split)]


def fingerprint(given: object) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


HASHED = {"num_train": 60, "num_validation": 10, "num_test": 12, "num_influence_demonstrations": 8}
# computed once, with the first version of these problems; published results depend on every bit of them
PUBLISHED = [
    (
        {**HASHED, "num_demonstrations": 40},
        "3a19c5778c7a5bcc 38233b494c4c6615 dd65592d138519f5 501e3b5636da2e24 66b8c7303fd84426",
    ),
    (
        {**HASHED, "num_demonstrations": 40, "seed": 3},
        "02c7ebdad153e361 b8c5442f07c75e79 f0fe2f9807c9be94 952ada7be5c8292e cf8d1584d90e224c",
    ),
    (
        {
            **HASHED,
            "num_demonstrations": 40,
            "seed": 7,
            "operators": "+-*",
            "min_terms": 3,
            "max_terms": 5,
            "influence_noise": 0.5,
            "unfaithful_kinds": {"nonsense": 1.0, "shortcut": 2.0},
        },
        "e2a25d1c3586cb00 f9e9330e6ea41a97 d98e9cdff7e47d1e 664662b9a4ab71fd da0f63edbcb2e892",
    ),
    ({}, "7b5a71a90e079217 be1118f74b2336db e28546acb15aba35 c797e3c80e897499 25c969c7f6e75eaa"),
]


@pytest.mark.parametrize(("settings", "expected"), PUBLISHED, ids=["small", "seed 3", "other problems", "defaults"])
def test_the_rows_of_a_seed_never_change(settings: dict[str, Any], expected: str) -> None:
    made = ArithmeticTask(**settings)
    assert [fingerprint(made.rows(split)) for split in SPLITS] == expected.split()


def test_it_is_a_task() -> None:
    assert isinstance(task(), Task)


def test_no_problem_is_in_two_splits() -> None:
    made = task()
    splits = [prompts(made, split) for split in ("prompts", "validation", "test", "influence")]
    assert [len(split) for split in splits] == [90, 20, 30, 10]
    assert len(set().union(*splits)) == 150


def test_demonstrations_are_over_the_first_training_problems() -> None:
    made = task()
    assert prompts(made, "demonstrations") == prompts(made, "prompts")[:50]


@pytest.mark.parametrize(("num_train", "expected"), [(90, 90), (5000, 4096)])
def test_without_a_number_there_is_one_demonstration_per_problem_up_to_a_limit(num_train: int, expected: int) -> None:
    made = ArithmeticTask(num_train=num_train, num_validation=1, num_test=1)
    assert len(made.rows("demonstrations")) == expected


def test_every_row_contains_its_answer_and_demonstrations_their_label() -> None:
    made = task()
    for split in SPLITS:
        for row in made.rows(split):
            example = row["example"]
            assert made.grade(row["prompt"], f"#{example['answer']}", example).correct
            assert example["problem"] == row["prompt"]
            assert ("label" in example) == ("response" in row) == (split in ("demonstrations", "influence"))


def test_influence_demonstrations_are_clean() -> None:
    for row in task().rows("influence"):
        assert grade_arithmetic(row["prompt"], row["response"], row["example"]).faithful
        assert row["example"]["label"] == "faithful"


def test_noise_spoils_that_fraction_of_the_influence_demonstrations_and_nothing_else() -> None:
    noisy, clean = task(influence_noise=0.3), task()
    assert sum(row["example"]["label"] != "faithful" for row in noisy.rows("influence")) == 3
    assert prompts(noisy, "influence") == prompts(clean, "influence")
    assert noisy.rows("demonstrations") == clean.rows("demonstrations")


def test_the_same_seed_gives_the_same_and_another_seed_other_rows() -> None:
    assert rows(task(seed=3)) == rows(task(seed=3))
    first, second = rows(task(seed=3)), rows(task(seed=4))
    assert not [split for split in SPLITS if first[split] == second[split]]


def test_problems_do_not_depend_on_how_many_demonstrations_are_unfaithful() -> None:
    expected, changed = task(), task(unfaithful_fraction=1.0)
    assert changed.rows("test") == expected.rows("test")
    assert changed.rows("prompts") == expected.rows("prompts")


def test_the_state_of_pythons_generator_does_not_matter() -> None:
    expected = rows(task())
    random.seed(5)
    assert rows(task()) == expected


def test_short_problems_are_spread_over_all_splits() -> None:
    made = ArithmeticTask(num_train=2000, num_validation=300, num_test=300, max_terms=3, max_number=9)
    fractions = [
        sum(prompt.count("+") + prompt.count("-") == 1 for prompt in prompts(made, split)) / len(made.rows(split))
        for split in ("test", "validation", "prompts")
    ]
    # 162 short ones in 2,664 problems; drawn in order, half of the first split would be short
    assert max(fractions) - min(fractions) < 0.05


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_train": -1}, "num_train"),
        ({"num_train": 1.5}, "num_train"),
        ({"num_demonstrations": -1}, "num_demonstrations"),
        ({"num_demonstrations": 91}, "num_demonstrations"),
        ({"unfaithful_fraction": 1.1}, "unfaithful_fraction"),
        ({"influence_noise": -0.1}, "influence_noise"),
        ({"influence_noise": float("nan")}, "influence_noise"),
        ({"unfaithful_kinds": {"typo": 1.0}}, "unfaithful_kinds"),
        ({"operators": "/"}, "operators"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_before_any_work(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.{field}: ") as caught:
        task(**changes)
    assert "\n" not in str(caught.value)


def test_more_problems_than_exist_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"150 different problems are needed, and only 50 exist"):
        task(max_terms=2, max_number=5, num_demonstrations=1).rows("test")
