"""The task of word problems: splits by hash, demonstrations of each label, and the files that it reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import WordProblemsTask, named_task
from ippo_lightning.tasks.protocol import Split
from ippo_lightning.tasks.word_problems.questions import load_problems

SPLITS: tuple[Split, ...] = ("prompts", "demonstrations", "validation", "test", "influence")


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = [(f"Ann has {n} pens and gets {n + 2} more. How many?", float(2 * n + 2)) for n in range(60)]
    rows = [{"input": text, "target": target} for text, target in texts]
    again = [{"input": row["input"].replace(" and", " ,  AND"), "target": row["target"]} for row in rows[:30]]
    write_lines(tmp_path / "mawps.one.jsonl", rows[:40])
    write_lines(tmp_path / "mawps.two.jsonl", [*rows[40:], *again, {"input": "What is pi?", "target": "pi"}])
    write_lines(tmp_path / "svamp.test.jsonl", [{"Body": "Bo has 3", "Question": "and eats 1. Left?", "Answer": 2.0}])
    write_lines(tmp_path / "asdiv.test.jsonl", [{"body": "Cy has 3.", "question": "And 4?", "answer": "7 (nuts)"}])
    return tmp_path


def task(folder: Path, **settings: Any) -> WordProblemsTask:
    return WordProblemsTask(
        **{"path": str(folder), "num_test": 10, "num_validation": 6, "num_influence_demonstrations": 4, **settings}
    )


def questions(made: WordProblemsTask, split: Split) -> list[str]:
    return [row["example"]["question"] for row in made.rows(split)]


def test_no_question_is_in_two_splits_however_it_is_spelt(folder: Path) -> None:
    made = task(folder)
    found = [question for split in SPLITS for question in questions(made, split)]
    seen = Counter("".join(filter(str.isalnum, question.lower())) for question in found)
    assert len(seen) == 60
    assert sorted(set(seen.values())) == [1, 2]  # demonstrations are over the training prompts
    assert [len(made.rows(split)) for split in SPLITS] == [40, 40, 6, 10, 4]


def test_splits_do_not_depend_on_the_order_of_the_files(folder: Path) -> None:
    before = [task(folder).rows(split) for split in SPLITS]
    (folder / "mawps.one.jsonl").rename(folder / "mawps.zero.jsonl")
    lines = (folder / "mawps.zero.jsonl").read_text().splitlines()
    (folder / "mawps.zero.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    after = [task(folder).rows(split) for split in SPLITS]
    for one, other in zip(before, after, strict=True):
        assert [row["example"]["answer"] for row in one] == [row["example"]["answer"] for row in other]


@pytest.mark.parametrize(("test", "answer"), [("svamp", "2"), ("asdiv", "7")])
def test_another_source_can_be_the_test_and_training_stays_what_it_is(folder: Path, test: Any, answer: str) -> None:
    made = task(folder, test=test)
    assert [row["example"]["answer"] for row in made.rows("test")] == [answer]
    assert all(made.rows(split) == task(folder).rows(split) for split in SPLITS if split != "test")
    assert not task(folder, test=test, num_transfer=0).rows("test")


def test_a_question_of_the_test_of_transfer_is_not_learned(folder: Path) -> None:
    learned = questions(task(folder), "prompts")[0]
    write_lines(folder / "svamp.more.jsonl", [{"Body": learned.upper(), "Question": "?", "Answer": 2.0}])
    assert learned not in questions(task(folder, test="svamp"), "prompts")


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_demonstrations_have_the_labels_that_they_state(folder: Path, fraction: float) -> None:
    made = task(folder, unfaithful_fraction=fraction)
    rows = made.rows("demonstrations")
    for row in [*rows, *made.rows("influence")]:
        assert made.grade(row["prompt"], row["response"], row["example"]).label == row["example"]["label"]
    labels = Counter(row["example"]["label"] for row in rows)
    assert labels["faithful"] == round((1 - fraction) * len(rows))
    assert {row["example"]["label"] for row in made.rows("influence")} == {"faithful"}


def test_the_template_makes_the_prompt_and_the_grade_ignores_it(folder: Path) -> None:
    made = task(folder, prompt_template="7 and 9: {question} =>")
    row = made.rows("influence")[0]
    assert row["prompt"].startswith("7 and 9: Ann has")
    assert made.grade(row["prompt"], f"7+9=16\n#### {row['example']['answer']}", row["example"]).label != "faithful"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": "gsm8k"}, r"task\.test: 'gsm8k' is unknown"),
        ({"num_test": -1}, r"task\.num_test: -1"),
        ({"unfaithful_fraction": 2}, r"task\.unfaithful_fraction: 2"),
        ({"unfaithful_kinds": {"lie": 1}}, "lie"),
        ({"prompt_template": "x"}, r"task\.prompt_template: 'x' does not contain"),
    ],
)
def test_a_wrong_argument_is_an_error(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(folder, **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: list; expected an object with input, target"),
        ('{"input": 3, "target": 3}', "line 1: input is int 3; expected text"),
        ('{"input": "How many?"}', "line 1: target is missing; expected a number"),
        ('{"input": "How many?", "target": "some"}', "has no problem with a number as answer"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mawps.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_problems(str(tmp_path), "mawps")


def test_a_missing_folder_and_too_few_questions_are_errors(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'data/word_problems' has no file mawps\*\.jsonl"):
        named_task("word_problems").rows("test")
    with pytest.raises(UserError, match=r"no training question is left of 60"):
        task(folder, num_validation=60).rows("test")


def test_most_questions_of_mawps_have_steps_that_the_grader_finds_faithful(shared_data: Path) -> None:
    path = str(shared_data / "easy_arithmetic")
    problems = load_problems(path, "mawps")
    made = WordProblemsTask(path=path, unfaithful_fraction=0.4)
    assert len(problems) == 1799
    assert sum(problem.steps() is not None for problem in problems) == 1734
    for row in made.rows("demonstrations"):
        assert made.grade(row["prompt"], row["response"], row["example"]).label == row["example"]["label"]


@pytest.mark.parametrize(("source", "number"), [("svamp", 1000), ("asdiv", 2082)])
def test_the_sources_of_transfer_are_read_whole(source: Any, number: int, shared_data: Path) -> None:
    assert len(load_problems(str(shared_data / "easy_arithmetic"), source)) == number


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"num_train": 5}, {"prompts", "demonstrations"}),
        ({"num_demonstrations": 5}, {"demonstrations"}),
        ({"num_variants": 1}, {"demonstrations"}),
        ({"num_test": 11}, set(SPLITS)),
        ({"num_validation": 7}, {"validation", "influence", "prompts", "demonstrations"}),
        ({"num_influence_demonstrations": 5}, {"influence", "prompts", "demonstrations"}),
        ({"unfaithful_kinds": {"shortcut": 1.0}}, {"demonstrations"}),
        ({"seed": 1}, {"demonstrations"}),
    ],
)
def test_each_setting_changes_its_splits_and_no_other(
    folder: Path, settings: dict[str, Any], changed: set[str]
) -> None:
    made, plain = task(folder, **settings), task(folder)
    assert {split for split in SPLITS if made.rows(split) != plain.rows(split)} == changed


def test_variants_are_more_demonstrations_and_no_question_that_is_held_out(folder: Path) -> None:
    made = task(folder, num_variants=30)
    found = questions(made, "demonstrations")
    assert len(set(found)) == len(found) > 10 * len(made.rows("prompts"))
    # the questions differ in their numbers only, so many a variant is one of them
    assert not set(found) & {
        question for split in ("test", "validation", "influence") for question in questions(made, split)
    }
    for row in made.rows("demonstrations"):
        assert made.grade(row["prompt"], row["response"], row["example"]).label == row["example"]["label"]
