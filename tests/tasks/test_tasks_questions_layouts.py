"""Every record of the real data sets: it is read, or the list tells where it stands and why it is not."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import QuestionTask, Source
from ippo_lightning.tasks.questions.answer_kinds import ANSWER_KINDS, last_boxed
from ippo_lightning.tasks.questions.layouts import LAYOUTS
from ippo_lightning.tasks.questions.reading import fitting
from ippo_lightning.tasks.questions.splits import Question

MATH, TRAIN, COLLEGE = "math/math500_test.jsonl", "math/train_answers.jsonl", "college_math/test_cc_by.jsonl"
OLYMPIAD, ECQA = "olympiadbench/test.jsonl", "ecqa/ecqa_train.tsv"
SVAMP, ASDIV, MAWPS = (f"easy_arithmetic/{name}.jsonl" for name in ("svamp.test", "asdiv.test", "mawps.*"))


def read(data: Path, layout: Any, path: str) -> tuple[list[Question], list[str]]:
    if not list(data.glob(path)):
        pytest.skip(f"no {path} in {data}")
    return fitting(Source(path=str(data / path), layout=layout, unfit_rows="drop"), field="task.train")


def records(data: Path, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("layout", "path", "fit", "unfit", "different", "worked"),
    [
        ("gsm8k", "gsm8k/train.jsonl", 7473, 0, 7473, 7473),
        ("gsm8k", "gsm8k/test.jsonl", 1319, 0, 1319, 1319),
        ("math", MATH, 500, 0, 500, 500),
        ("math", TRAIN, 7470, 4, 7468, 0),
        ("college_math", COLLEGE, 1260, 0, 1234, 0),
        ("olympiadbench", OLYMPIAD, 675, 0, 675, 675),
        ("ecqa", ECQA, 7112, 0, 7112, 7112),
        ("svamp", SVAMP, 1000, 0, 1000, 999),
        ("asdiv", ASDIV, 2084, 131, 2083, 1527),
        ("mawps", MAWPS, 2065, 0, 1868, 0),
    ],
)
def test_every_record_is_read_or_named(
    layout: str, path: str, fit: int, unfit: int, different: int, worked: int, shared_data: Path
) -> None:
    found, left_out = read(shared_data, layout, path)
    assert (len(found), len(left_out)) == (fit, unfit)
    assert len({question.key for question in found}) == different
    assert sum(question.cells.response is not None for question in found) == worked
    assert all(re.search(r", line \d+: answer ", reason) for reason in left_out), left_out[:3]


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        *(("ecqa", ECQA), ("svamp", SVAMP), ("asdiv", ASDIV)),
        *(pytest.param(*long, marks=pytest.mark.slow) for long in (("math", MATH), ("olympiadbench", OLYMPIAD))),
    ],
)
def test_the_grader_finds_the_answer_in_every_demonstration(layout: str, path: str, shared_data: Path) -> None:
    grade = ANSWER_KINDS[LAYOUTS[layout].answer_kind].grade
    for question in read(shared_data, layout, path)[0]:
        if question.cells.response is not None:
            example = {"answer": question.cells.answer}
            assert grade("", question.cells.response, example).correct, question.place
            assert not grade("", f"{question.cells.response}\n\\boxed{{x+y+z}}\n#### 0.0625", example).correct


def test_the_empty_answers_of_math_are_named_by_their_lines(shared_data: Path) -> None:
    left_out = read(shared_data, "math", TRAIN)[1]
    assert [re.search(r"line (\d+): (.*);", reason)[0] for reason in left_out] == [
        "line 887: answer is missing;",
        "line 1010: answer is missing;",
        "line 5329: answer is empty;",
        "line 5331: answer is empty;",
    ]


def test_the_answers_of_math_are_in_the_last_boxes_of_its_solutions(shared_data: Path) -> None:
    """The Hub's copy of MATH has no column with answers, and the copy here has both."""
    found = read(shared_data, "math", MATH)[0]
    grade = ANSWER_KINDS["boxed"].grade
    hub = [{"problem": row["problem"], "solution": row["solution"]} for row in records(shared_data, MATH)]
    answers = [LAYOUTS["math"].read(row, "").answer for row in hub]
    assert answers.count(None) == 0
    for answer, question in zip(answers, found, strict=True):
        assert grade("", f"\\boxed{{{answer}}}", {"answer": question.cells.answer}).correct, (answer, question)


def test_the_options_of_ecqa_are_five_and_one_of_them_is_the_answer(shared_data: Path) -> None:
    found = read(shared_data, "ecqa", ECQA)[0]
    for question in found:
        options = question.cells.kept["options"]
        assert len(options) == 5
        assert question.cells.answer in options
        assert question.cells.question.endswith("".join(f"\n- {option}" for option in options))
        assert "\\n" not in question.cells.question
    hub = {"q_text": "Where?", **{f"q_op{number}": f"place {number}" for number in range(1, 6)}}
    cells = LAYOUTS["ecqa"].read({**hub, "q_ans": "place 2", "taskB": "It is near."}, "")
    assert cells.question == "Where?\nOptions:" + "".join(f"\n- place {number}" for number in range(1, 6))
    assert cells.response == "It is near.\n#### place 2"


def test_numbers_of_svamp_and_asdiv_are_those_of_the_files(shared_data: Path) -> None:
    svamp = read(shared_data, "svamp", SVAMP)[0]
    assert [float(question.cells.answer) for question in svamp] == [
        row["Answer"] for row in records(shared_data, SVAMP)
    ]
    asdiv = {
        question.place.rpartition(" ")[2]: question.cells.answer for question in read(shared_data, "asdiv", ASDIV)[0]
    }
    for line, row in enumerate(records(shared_data, ASDIV), start=1):
        number = re.fullmatch(r"([\d,]*\.?\d+)( +\(.*)?", row["answer"])
        assert (number is not None) == (str(line) in asdiv), row["answer"]
        assert number is None or float(number[1].replace(",", "")) == float(asdiv[str(line)])


def test_answers_with_several_values_are_sets(shared_data: Path) -> None:
    found = read(shared_data, "olympiadbench", OLYMPIAD)[0]
    assert Counter(question.cells.kept["is_set"] for question in found) == {False: 581, True: 94}
    assert not any("$" in question.cells.answer for question in found)
    college = read(shared_data, "college_math", COLLEGE)[0]
    assert not any("$" in question.cells.answer.replace("\\$", "") for question in college)
    assert sum("$" in question.cells.answer for question in college) == sum(
        "\\$" in row["answer"] for row in records(shared_data, COLLEGE)
    )


def test_mawps_and_a_file_of_its_own_share_no_question_between_splits(shared_data: Path) -> None:
    path = shared_data / "easy_arithmetic" / "mawps.*.jsonl"
    task = QuestionTask(train=Source(path=str(path), layout="mawps"), num_test=300)
    keys = [
        {row["example"]["question"].lower().replace(" ", "") for row in task.rows(split)}
        for split in ("prompts", "validation", "test")
    ]
    assert [len(found) for found in keys] == [1868 - 128 - 300, 128, 300]
    assert len(set.union(*keys)) == 1868


@pytest.mark.parametrize(
    ("layout", "row", "said"),
    [
        ("gsm8k", {"question": "q", "answer": "4"}, "answer has no number after ####"),
        ("math", {"problem": "p", "solution": "no box"}, "answer is missing"),
        ("olympiadbench", {"question": "q", "final_answer": ["1", "2"]}, "final_answer is"),
        ("ecqa", {"question": "q", "answer": "a", "explanation": "e"}, "no list of 5 options"),
        ("ecqa", {"q_text": "q", **{f"q_op{n}": "x" for n in range(1, 6)}, "q_ans": "y"}, "none of the options"),
        ("svamp", {"Body": "b", "Question": "q", "Answer": None}, "Answer is missing"),
        ("asdiv", {"body": "b", "question": "q", "answer": "Yes"}, "'Yes' is no number"),
        ("mawps", {"input": "", "target": 3}, "input is empty"),
        ("college_math", {"question": "q", "answer": "$ $"}, "answer is empty"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_with_its_place(layout: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^here: .*{re.escape(said)}"):
        LAYOUTS[layout].read(row, "here")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1", None),
        ("none", None),
        (r"\boxed{ }", None),
        ("\\boxed{" + "{" * 100_000, None),
    ],
)
def test_the_content_of_the_last_box(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside
