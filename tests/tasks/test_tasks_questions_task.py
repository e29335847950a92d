"""Questions of any file as a task: fixed splits without leaks, mixtures, grading, and what the log tells."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Columns, NeedsPreparation, QuestionTask, Source, Task
from ippo_lightning.tasks.leaks import find_leaks

SPLITS = ("prompts", "demonstrations", "validation", "test", "influence")
SIZES = {"num_validation": 6, "num_test": 5, "num_influence_demonstrations": 4}
ROWS = [{"q": f"What is {n} + 1000?", "how": f"It is {n + 1000}", "a": n + 1000, "topic": n % 3} for n in range(60)]
COLUMNS = Columns(prompt="q", response="how", answer="a", keep=["topic"])


def source(path: Path, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(path=str(path), **{"columns": COLUMNS, "answer_kind": "number", **settings})


def task(path: Path, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> QuestionTask:
    return QuestionTask(**{"train": source(path / "train.jsonl", rows), **SIZES, **settings})


def splits(made: QuestionTask) -> dict[str, list[Any]]:
    return {split: list(made.rows(split)) for split in SPLITS}


def asked(rows: list[Any]) -> list[str]:
    return [row["example"]["question"] for row in rows]


def test_rows_have_prompt_answer_response_and_what_is_kept(tmp_path: Path) -> None:
    made = task(tmp_path, prompt_template="Q: {question}\nA: ")
    assert isinstance(made, Task)
    assert isinstance(made, NeedsPreparation)
    made.prepare()
    for row in made.rows("influence"):
        number = int(row["example"]["answer"]) - 1000
        assert row["prompt"] == f"Q: What is {number} + 1000?\nA: "
        assert row["response"] == f"It is {number + 1000}"
        assert row["example"]["topic"] == number % 3
        assert made.grade(row["prompt"], row["response"], row["example"]).correct
        assert not made.grade(row["prompt"], "It is 7", row["example"]).correct
    assert {split for split in SPLITS if any("response" in row for row in made.rows(split))} == {
        "demonstrations",
        "influence",
    }
    assert made.can_grade


def test_splits_share_no_question_and_lose_none(tmp_path: Path) -> None:
    found = splits(task(tmp_path))
    assert {split: len(rows) for split, rows in found.items()} == {
        "prompts": 45,
        "demonstrations": 45,
        "validation": 6,
        "test": 5,
        "influence": 4,
    }
    parts = [set(asked(found[split])) for split in SPLITS if split != "demonstrations"]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 60
    assert find_leaks(found) == []


def test_splits_depend_on_the_questions_only(tmp_path: Path) -> None:
    first = splits(task(tmp_path))
    changed = [{**row, "q": f" {row['q'].upper()} "} for row in random.Random(0).sample(ROWS, len(ROWS))]
    second = splits(task(tmp_path, changed))
    for split in SPLITS:
        answers = [[row["example"]["answer"] for row in found[split]] for found in (first, second)]
        assert sorted(answers[0]) == sorted(answers[1])
        assert answers[0] == answers[1] or split in ("prompts", "demonstrations")


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"num_train": 5}, {"prompts", "demonstrations"}),
        ({"num_demonstrations": 5}, {"demonstrations"}),
        ({"num_test": 6}, set(SPLITS)),
        ({"num_validation": 7}, {"validation", "influence", "prompts", "demonstrations"}),
        ({"num_influence_demonstrations": 5}, {"influence", "prompts", "demonstrations"}),
        ({"sft_fraction": 0.4}, {"prompts", "demonstrations"}),
        ({"max_characters": 17}, set(SPLITS)),
        ({"prompt_template": "{question}"}, set(SPLITS)),
    ],
    # a set has another order in each process
    ids=lambda value: str(sorted(value))[:40],
)
def test_each_setting_changes_its_splits_and_no_other(
    settings: dict[str, Any], changed: set[str], tmp_path: Path
) -> None:
    rows = [*ROWS[:50], *({**row, "q": row["q"][8:]} for row in ROWS[50:])]
    plain, made = splits(task(tmp_path, rows)), splits(task(tmp_path, rows, **settings))
    assert {split for split in SPLITS if made[split] != plain[split]} == changed


def test_questions_for_sft_can_be_kept_apart_from_the_prompts(tmp_path: Path) -> None:
    made = task(tmp_path, sft_fraction=0.4)
    sft, prompts = set(asked(list(made.rows("demonstrations")))), set(asked(list(made.rows("prompts"))))
    assert (len(sft), len(prompts), len(sft & prompts)) == (18, 27, 0)


def test_what_another_source_tests_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    again = [{**row, "q": row["q"].lower().replace(" ", "  ")} for row in ROWS[:10]]
    test = source(tmp_path / "test.jsonl", [*again, {"q": "New?", "how": "1", "a": 1, "topic": 0}])
    with caplog.at_level(logging.WARNING):
        made = task(tmp_path, test=test, num_test=3, validation=source(tmp_path / "v.jsonl", ROWS[8:20]))
        found = splits(made)
    assert len(found["test"]) == 3
    assert not set(asked(found["prompts"])) & {row["q"] for row in ROWS[:10]}
    assert len(found["prompts"]) == 60 - 10 - 6 - 4
    assert find_leaks(found) == []
    assert "task.train: 10 of 60 questions are in test; left out" in caplog.text
    assert "task.validation: 2 of 12 questions are in test; left out" in caplog.text


def test_demonstrations_may_come_from_another_source(tmp_path: Path) -> None:
    bare = Columns(prompt="q")
    others = [{"q": f"Other {n}?", "how": "so"} for n in range(20)]
    made = QuestionTask(
        train=source(tmp_path / "p.jsonl", columns=bare, answer_kind=None),
        demonstrations=source(
            tmp_path / "d.jsonl", others + ROWS, columns=Columns(prompt="q", response="how"), answer_kind=None
        ),
        **SIZES,
    )
    found = splits(made)
    assert [len(found[split]) for split in SPLITS][1:] == [80 - 4 - 11, 6, 5, 4]
    assert find_leaks(found) == []
    assert not made.can_grade
    assert not made.grade("", "so", found["demonstrations"][0]["example"]).correct


def test_weights_tell_how_often_a_source_is_in_an_epoch(tmp_path: Path) -> None:
    kinds = {"one": 1.0, "half": 0.5, "more": 2.25}
    sources = [
        source(tmp_path / f"{kind}.jsonl", [{**row, "q": f"{kind} {row['q']}"} for row in ROWS[:40]], weight=weight)
        for kind, weight in kinds.items()
    ]
    made = QuestionTask(train=sources, num_validation=0, num_test=0, num_influence_demonstrations=0)
    counts = Counter(question.split()[0] for question in asked(list(made.rows("prompts"))))
    assert counts == {"one": 40, "half": 20, "more": 90}
    assert [len(made.rows(split)) for split in ("demonstrations", "validation", "test")] == [150, 0, 0]


def test_the_log_tells_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, {**ROWS[0], "a": 5}, ROWS[1], {**ROWS[2], "a": ""}, {**ROWS[3], "q": "x" * 90}]
    with caplog.at_level(logging.WARNING):
        made = task(tmp_path, max_characters=80, train=source(tmp_path / "more.jsonl", rows, unfit_rows="drop"))
        assert len(made.rows("prompts")) == 45
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "1 of 64 rows" in said[0]
    assert "more.jsonl, line 63: a is empty" in said[0]
    assert "task.max_characters: 80 leaves out 1 of 63 questions" in said[1]
    assert said[2].startswith("task.train: 2 of 62 questions come again, 1 of them with another answer")


def test_demonstrations_that_the_grader_would_not_accept_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task(tmp_path, train=source(tmp_path / "t.jsonl", answer_kind="boxed")).rows("prompts")
    assert "answer_kind: boxed does not find the answer in the response, as in 45 of 45" in caplog.text


def test_conversations_are_rows_with_messages(tmp_path: Path) -> None:
    talks = [
        {"m": [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["how"]}]} for row in ROWS
    ]
    made = QuestionTask(
        train=source(tmp_path / "m.jsonl", talks, columns=Columns(messages="m"), answer_kind=None), **SIZES
    )
    data = TextDataModule(made, stage="sft", batch_size=4)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert [prompt.messages[-1]["content"] for prompt in batch["prompts"]] == batch["prompts"]
    assert all(response.startswith("It is ") for response in batch["responses"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": None}, "task.train: null"),
        ({"num_train": -1}, "task.num_train: -1"),
        ({"max_characters": 0}, "task.max_characters: 0"),
        ({"sft_fraction": 1.5}, "task.sft_fraction: 1.5"),
        ({"prompt_template": "x"}, "task.prompt_template: 'x' does not contain"),
        (
            {"num_validation": 60},
            "task.num_test: 5, task.num_validation: 60, task.num_influence_demonstrations: 4 hold out 69 questions, "
            "and .* has 60 in .*; expected fewer, for example 6 each",
        ),
    ],
)
def test_a_wrong_argument_is_an_error(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        task(tmp_path, **settings).rows("prompts")


def test_a_fraction_for_sft_and_own_demonstrations_contradict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^task\.sft_fraction: given"):
        task(tmp_path, sft_fraction=0.5, demonstrations=source(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROWS[0], "a": "one"}, "line 2: answer 'one' does not fit answer_kind: number"),
        ({**ROWS[0], "q": None}, "line 2: q is missing; expected text"),
        ({"question": "?"}, "line 2: there is no column 'how'"),
        ({"q": "?", "hwo": "!"}, "line 2: there is no column 'how'; did you mean 'hwo'?"),
    ],
)
def test_a_row_that_does_not_fit_ends_the_run_with_its_line(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^task\.train: .*train\.jsonl, {said}.*; or set unfit_rows|{said}") as caught:
        task(tmp_path, [ROWS[0], row]).rows("prompts")
    assert str(caught.value).endswith("correct it, or set unfit_rows: drop")


@pytest.mark.parametrize("unfit_rows", ["refuse", "drop"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": Columns(prompt="z")}, "there is no column 'z'; expected one of q, how, a, topic"),
        ({"columns": None, "answer_kind": None, "layout": "svamp"}, "Body is missing"),
    ],
    ids=["columns", "layout"],
)
def test_where_no_row_fits_the_columns_that_exist_are_named(
    settings: dict[str, Any], said: str, unfit_rows: str, tmp_path: Path
) -> None:
    given = source(tmp_path / "train.jsonl", **{"unfit_rows": unfit_rows, "answer_kind": None, **settings})
    with pytest.raises(UserError, match=said) as caught:
        QuestionTask(train=given).rows("test")
    assert "drop" not in str(caught.value)
    assert "q, how, a, topic" in str(caught.value)


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl gave no rows"):
        task(tmp_path, []).rows("test")


@pytest.mark.parametrize(
    ("kind", "response", "answer", "is_right"),
    [
        ("number", "3 and 4 make 7.", "7", True),
        ("number", "It costs $1,000.50 .", "1000.5", True),
        ("number", "7 or 8", "7", False),
        ("number", "none", "7", False),
        ("hash", "so\n#### 7.0", "7", True),
        ("hash", "so\n#### Blue \nmore", "blue", True),
        ("hash", "7", "7", False),
        ("boxed", r"\boxed{\dfrac{1}{2}}", r"\frac12", True),
        ("boxed", r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", False),
        ("option", "I think\ncake.", "Cake", True),
        ("option", "It is sweet.\n#### cake", "cake", True),
        ("option", "cake, or pie", "cake", False),
        ("gsm8k", "<<3+4=7>>\n#### 7", "7", True),
        ("number", "7" * 20_000, "7", False),
    ],
)
def test_the_answer_of_a_response_by_its_kind(kind: str, response: str, answer: str, is_right: bool) -> None:
    made = QuestionTask(train=Source(path="x.csv", columns=Columns(prompt="q")))
    grade = made.grade("", response, {"answer": answer, "answer_kind": kind})
    assert grade.correct == is_right
    assert not is_right or grade.answer == answer  # so that right answers vote together


@pytest.mark.parametrize("piece", ["7", "1,000", "####", r"\boxed{", "{", "$-", "a b", "1.", " \n"])
@pytest.mark.parametrize("kind", ["number", "hash", "boxed", "option"])
def test_long_responses_are_graded_at_once(kind: str, piece: str) -> None:
    made = QuestionTask(train=Source(path="x.csv", columns=Columns(prompt="q")))
    for length in (16_000, 1_000_000):
        made.grade("", piece * (length // len(piece)), {"answer": "7", "answer_kind": kind})
