"""The word-problem data module: what is held out, what a row looks like, and files that are wrong."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest

from ippo_lightning.data import GSM8KDataModule
from ippo_lightning.data.gsm8k import hold_out, with_canonical_answer
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import grade_gsm8k

RECORDS = [
    {"question": f"What is {number} + 1000?", "answer": f"<<{number}+1000={number + 1000}>>\n#### {number + 1000:,}"}
    for number in range(40)
]
SIZES = {"num_validation": 6, "num_influence_demonstrations": 4, "batch_size": 8, "evaluation_batch_size": 3}


def write(folder: Path, train: list[dict] | str, test: list[dict] | str = RECORDS[:5]) -> str:
    for name, content in (("train", train), ("test", test)):
        text = content if isinstance(content, str) else "".join(json.dumps(record) + "\n" for record in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def module(path: str, **changes: object) -> GSM8KDataModule:
    made = GSM8KDataModule(path=path, **{**SIZES, **changes})
    made.prepare_data()
    made.setup("fit")
    return made


def questions(rows: list) -> list[str]:
    return [row["example"]["question"] for row in rows]


def test_rows_carry_prompt_answer_and_worked_response(tmp_path: Path) -> None:
    made = module(write(tmp_path, RECORDS), prompt_template="Q: {question}\nA: ")
    for batch in made.influence_dataloader():
        for prompt, response, example in zip(batch["prompts"], batch["responses"], batch["examples"], strict=True):
            number = int(example["answer"]) - 1000
            assert prompt == f"Q: What is {number} + 1000?\nA: "
            assert response == f"<<{number}+1000={number + 1000}>>\n#### {number + 1000}"
            assert grade_gsm8k(prompt, response, example).faithful


def test_no_training_question_is_held_out_and_none_is_lost(tmp_path: Path) -> None:
    splits = module(write(tmp_path, RECORDS)).splits
    parts = [questions(rows) for rows in (splits.prompts, splits.validation, splits.influence)]
    assert [len(part) for part in parts] == [30, 6, 4]
    assert set().union(*parts) == {record["question"] for record in RECORDS}
    assert questions(splits.demonstrations) == parts[0]
    assert questions(splits.test) == [record["question"] for record in RECORDS[:5]]


def test_what_is_held_out_depends_neither_on_the_seed_nor_on_the_order_of_the_file(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = module(write(tmp_path / "a", RECORDS), seed=1).splits
    second = module(write(tmp_path / "b", shuffled), seed=2).splits
    assert first.validation == second.validation
    assert first.influence == second.influence
    assert first.prompts != second.prompts


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
    whole = module(path).splits
    cut = module(path, num_train=20, num_test=2, num_demonstrations=5).splits
    assert cut.prompts == whole.prompts[:20]
    assert cut.demonstrations == whole.demonstrations[:5]
    assert cut.test == whole.test[:2]
    assert cut.validation == whole.validation


@pytest.mark.parametrize(("stage", "has_responses"), [("sft", True), ("rl", False)])
def test_the_stage_decides_about_responses(tmp_path: Path, stage: str, has_responses: bool) -> None:
    batch = next(iter(module(write(tmp_path, RECORDS), stage=stage).train_dataloader()))
    assert ("responses" in batch) == has_responses
    assert len(batch["prompts"]) == 8


def test_long_problems_are_left_out_of_every_split_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"question": "x" * 61, "answer": "#### 1"}, {"question": "y", "answer": "z" * 60 + "#### 1"}
    path = write(tmp_path, [*RECORDS, *long], [*long, *RECORDS[:5]])
    with caplog.at_level(logging.WARNING):
        made = module(path, max_characters=60)
    assert "data.max_characters: 60 leaves out 2 of 42 problems of train" in caplog.text
    (tmp_path / "short").mkdir()
    assert made.splits == module(write(tmp_path / "short", RECORDS)).splits


def test_braces_in_question_and_template_stay(tmp_path: Path) -> None:
    records = [{"question": f"{{x}} {number}", "answer": "#### 1"} for number in range(12)]
    made = module(write(tmp_path, records), prompt_template="{a} {question}?")
    assert {prompt for batch in made.train_dataloader() for prompt in batch["prompts"]} <= {
        f"{{a}} {{x}} {number}?" for number in range(12)
    }


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
        ('{"question": "\\ud800", "answer": "#### 1"}', r"question holds half a surrogate pair"),
        ("[" * 100_000, r"not JSON \(RecursionError"),
        ("9" * 5_000, r"not JSON"),
        ('{"question": "' + "x" * (1 << 20) + '", "answer": "#### 1"}', r"more than 1048576 bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(UserError, match=rf"^data\.path: .*train\.jsonl, line 3: {said}") as caught:
        module(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    records = [{"question": f"2020-01-{day:02}", "answer": "#### 1"} for day in range(1, 20)]
    assert all(
        question.startswith("2020-01-") for question in questions(module(write(tmp_path, records)).splits.prompts)
    )


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: not JSON \(UnicodeDecodeError"):
        module(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl does not exist"):
        module(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl holds no records"):
        module(write(tmp_path, content))


def test_holding_out_everything_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_validation: 6, .* leaves no training question of 10"):
        module(write(tmp_path, RECORDS[:10]))


@pytest.mark.parametrize("path", ["./missing", "/missing/folder", "~/missing-folder", "a/b/c", ""])
def test_a_missing_folder_is_named_and_never_asked_of_the_hub(path: str) -> None:
    with pytest.raises(UserError, match=r"is no folder; expected one"):
        GSM8KDataModule(path=path).prepare_data()


def test_without_a_network_the_hub_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"'nobody/nothing' is no folder here, and the Hub gave no data set") as caught:
        GSM8KDataModule(path="nobody/nothing").prepare_data()
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
        ({"stage": "dpo"}, "stage"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{field}: "):
        GSM8KDataModule(path="/missing", **changes)


def test_all_of_gsm8k_is_read_and_its_demonstrations_earn_the_reward(shared_data: Path) -> None:
    splits = module(str(shared_data / "gsm8k"), num_validation=128, num_influence_demonstrations=64).splits
    assert [len(rows) for rows in (splits.prompts, splits.validation, splits.influence, splits.test)] == [
        7281,
        128,
        64,
        1319,
    ]
    for row in [*splits.demonstrations[:500], *splits.influence]:
        assert grade_gsm8k(row["prompt"], row["response"], row["example"]).correct
