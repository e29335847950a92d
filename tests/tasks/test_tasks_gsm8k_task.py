"""The word-problem task: what is held out, what a row looks like, and files that are wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import GSM8KTask, NeedsPreparation, Task, grade_gsm8k
from ippo_lightning.tasks.gsm8k.task import hold_out, with_canonical_answer

RECORDS = [
    {"question": f"What is {number} + 1000?", "answer": f"<<{number}+1000={number + 1000}>>\n#### {number + 1000:,}"}
    for number in range(40)
]
SIZES = {"num_validation": 6, "num_influence_demonstrations": 4}
SPLITS = ("prompts", "demonstrations", "validation", "test", "influence")


def write(folder: Path, train: list[dict] | str, test: list[dict] | str = RECORDS[:5]) -> str:
    for name, content in (("train", train), ("test", test)):
        text = content if isinstance(content, str) else "".join(json.dumps(record) + "\n" for record in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def task(path: str, **changes: Any) -> GSM8KTask:
    made = GSM8KTask(path=path, **{**SIZES, **changes})
    made.prepare()
    return made


def splits(path: str, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    made = task(path, **changes)
    return {split: list(made.rows(split)) for split in SPLITS}


def questions(rows: list) -> list[str]:
    return [row["example"]["question"] for row in rows]


def fingerprint(given: object) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


# computed once, with the first version of these splits; published results depend on every bit of them
PUBLISHED = [
    ({}, "e9284349dfa9669f 402cf20ab81828a9 c4c4ff43b902fa5e 3627321318c97c1d bf3f2c8410fb0a3d"),
    (
        {"max_characters": 40, "num_train": 9, "prompt_template": "Q: {question}\nA: "},
        "3cfaf29e6f51e953 2d751128d3e2b5a4 6f93f422aed02420 e3d9d755092c3cd6 9661c3c71a657d7f",
    ),
]


@pytest.mark.parametrize(("settings", "expected"), PUBLISHED, ids=["sizes", "template and limits"])
def test_the_rows_of_a_file_never_change(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    found = splits(write(tmp_path, RECORDS), **settings)
    assert [fingerprint(found[split]) for split in SPLITS] == expected.split()


def test_it_is_a_task_that_downloads() -> None:
    made = GSM8KTask(path="/missing")
    assert isinstance(made, Task)
    assert isinstance(made, NeedsPreparation)


def test_rows_contain_prompt_answer_and_worked_response(tmp_path: Path) -> None:
    made = task(write(tmp_path, RECORDS), prompt_template="Q: {question}\nA: ")
    for row in made.rows("influence"):
        number = int(row["example"]["answer"]) - 1000
        assert row["prompt"] == f"Q: What is {number} + 1000?\nA: "
        assert row["response"] == f"<<{number}+1000={number + 1000}>>\n#### {number + 1000}"
        assert made.grade(row["prompt"], row["response"], row["example"]).faithful


def test_only_demonstrations_have_responses(tmp_path: Path) -> None:
    found = splits(write(tmp_path, RECORDS))
    with_responses = {split for split in SPLITS if any("response" in row for row in found[split])}
    assert with_responses == {"demonstrations", "influence"}


def test_no_training_question_is_held_out_and_none_is_lost(tmp_path: Path) -> None:
    found = splits(write(tmp_path, RECORDS))
    parts = [questions(found[split]) for split in ("prompts", "validation", "influence")]
    assert [len(part) for part in parts] == [30, 6, 4]
    assert set().union(*parts) == {record["question"] for record in RECORDS}
    assert questions(found["demonstrations"]) == parts[0]
    assert questions(found["test"]) == [record["question"] for record in RECORDS[:5]]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = splits(write(tmp_path / "a", RECORDS)), splits(write(tmp_path / "b", shuffled))
    assert first["validation"] == second["validation"]
    assert first["influence"] == second["influence"]
    assert first["prompts"] != second["prompts"]


def test_fewer_validation_questions_are_the_first_of_more() -> None:
    few, _ = hold_out(RECORDS, count=3)
    many, rest = hold_out(RECORDS, count=10)
    assert many[:3] == few
    assert rest == [record for record in RECORDS if record not in many]


def test_a_question_that_comes_twice_counts_once_with_its_first_answer() -> None:
    double = {"question": RECORDS[0]["question"], "answer": "#### 1"}
    held_out, rest = hold_out([*RECORDS, double], count=10)
    assert sorted(held_out + rest, key=str) == sorted(RECORDS, key=str)


def test_sizes_cut_from_the_end(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    full = splits(path)
    cut = splits(path, num_train=20, num_test=2, num_demonstrations=5)
    assert cut["prompts"] == full["prompts"][:20]
    assert cut["demonstrations"] == full["demonstrations"][:5]
    assert cut["test"] == full["test"][:2]
    assert cut["validation"] == full["validation"]


LONG = {"question": "x" * 61, "answer": "#### 1"}, {"question": "y", "answer": "z" * 60 + "#### 1"}


def test_long_problems_are_left_out_of_every_split_and_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = splits(write(tmp_path, [*RECORDS, *LONG], [*LONG, *RECORDS[:5]]), max_characters=60)
    assert "task.max_characters: 60 leaves out 2 of 42 problems of train" in caplog.text
    (tmp_path / "short").mkdir()
    assert found == splits(write(tmp_path / "short", RECORDS))


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_only_the_first_process_writes_to_the_log(
    variable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [*RECORDS, *LONG])
    for number, expected in (("1", 0), ("0", 1)):
        monkeypatch.setenv(variable, number)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            splits(path, max_characters=60)
        assert len(caplog.records) == expected


def test_braces_in_question_and_template_stay(tmp_path: Path) -> None:
    records = [{"question": f"{{x}} {number}", "answer": "#### 1"} for number in range(12)]
    found = splits(write(tmp_path, records), prompt_template="{a} {question}?")
    assert {row["prompt"] for row in found["prompts"]} <= {f"{{a}} {{x}} {number}?" for number in range(12)}


def test_the_answer_at_the_end_is_rewritten_in_canonical_form() -> None:
    assert with_canonical_answer("1 + 999\n#### 1,000.\n") == "1 + 999\n#### 1000"
    assert with_canonical_answer("#### 1\n####$2") == "#### 1\n#### 2"


GOOD = json.dumps(RECORDS[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"not JSON"),
        ("[1]", r"list; expected an object"),
        ('{"question": "q"}', r"answer is missing"),
        ('{"answer": "#### 1"}', r"question is missing"),
        ('{"question": "", "answer": "#### 1"}', r"question is empty"),
        ('{"question": 5, "answer": "#### 1"}', r"question is int 5"),
        ('{"question": "q", "answer": ["#### 1"]}', r"answer is list"),
        ('{"question": "q", "answer": "1"}', r"answer has no number after ####"),
        ('{"question": "q", "answer": "#### one"}', r"answer has no number after ####"),
        ('{"question": "\\ud800", "answer": "#### 1"}', r"question contains half a surrogate pair"),
        ("[" * 100_000, r"not JSON \(RecursionError"),
        ("9" * 5_000, r"not JSON"),
        ('{"question": "' + "x" * (1 << 20) + '", "answer": "#### 1"}', r"more than 1048576 bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(UserError, match=rf"^task\.path: .*train\.jsonl, line 3: {said}") as caught:
        splits(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    records = [{"question": f"2020-01-{day:02}", "answer": "#### 1"} for day in range(1, 20)]
    assert all(question.startswith("2020-01-") for question in questions(splits(write(tmp_path, records))["prompts"]))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: not JSON \(UnicodeDecodeError"):
        splits(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl does not exist"):
        splits(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl contains no records"):
        splits(write(tmp_path, content))


def test_holding_out_everything_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.num_validation: 6, .* leaves no training question of 10"):
        splits(write(tmp_path, RECORDS[:10]))


@pytest.mark.parametrize("path", ["./missing", "/missing/folder", "~/missing-folder", "a/b/c", ""])
def test_a_missing_folder_is_named_and_the_hub_is_not_asked(path: str) -> None:
    with pytest.raises(UserError, match=r"is not a folder; expected one"):
        GSM8KTask(path=path).prepare()


def test_without_a_network_the_hub_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"'nobody/nothing' is not a folder, and the Hub gave no data set") as caught:
        GSM8KTask(path="nobody/nothing").prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_train": -1}, "num_train"),
        ({"num_test": -1}, "num_test"),
        ({"num_validation": -1}, "num_validation"),
        ({"max_characters": 0}, "max_characters"),
        ({"num_influence_demonstrations": -1}, "num_influence_demonstrations"),
        ({"prompt_template": "no place"}, "prompt_template"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.{field}: "):
        GSM8KTask(path="/missing", **changes)


def test_all_of_gsm8k_is_read_and_its_demonstrations_are_right(shared_data: Path) -> None:
    found = splits(str(shared_data / "gsm8k"), num_validation=128, num_influence_demonstrations=64)
    sizes = {split: len(rows) for split, rows in found.items()}
    assert sizes == {"prompts": 7281, "demonstrations": 7281, "validation": 128, "test": 1319, "influence": 64}
    expected = "987a59483875c9a1 cfb7e620bbb5273d 04ec483b3f0918bf fa6282019946595e c96205df94f1b9dc"
    assert [fingerprint(found[split]) for split in SPLITS] == expected.split()
    for row in [*found["demonstrations"][:500], *found["influence"]]:
        assert grade_gsm8k(row["prompt"], row["response"], row["example"]).correct
