"""Cells by the user's own columns: names, dots, texts with names in braces, and conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Columns, Source
from ippo_lightning.tasks.questions.columns import read_columns

ROW = {
    "story": "Ann has 3.",
    "ask": "And 4 more?",
    "steps": "3+4=7",
    "result": 7.0,
    "found": {"text": ["seven", "VII"]},
    "topic": "sums",
    "a {b}": "braces",
}
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "3+4?"},
]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("story", "Ann has 3."),
        ("{story} {ask}", "Ann has 3. And 4 more?"),
        ("found.text.1", "VII"),
        ("{found.text.0}!", "seven!"),
        ("a {b}", "braces"),
        (r"so \boxed{{result}}", r"so \boxed{7}"),
        ("result", "7"),
    ],
)
def test_a_column_is_a_name_a_path_or_a_text_with_names(column: str, text: str) -> None:
    assert read_columns(ROW, Columns(prompt=column), "here").question == text
    assert read_columns(ROW, Columns(prompt="ask", response=column, answer=column), "here").response == text


@pytest.mark.parametrize(("count", "text"), [(1, "Ann"), (2, "Ann has"), (3, "Ann has 3."), (9, "Ann has 3.")])
def test_the_first_words_of_a_text_are_the_question(count: int, text: str) -> None:
    assert read_columns(ROW, Columns(prompt="story", first_words=count), "here").question == text


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "story", "first_words": 0}, "columns.first_words: 0"),
        ({"messages": "m", "first_words": 3}, "columns.first_words: given without columns.prompt"),
    ],
)
def test_first_words_that_cannot_be_taken_are_an_error(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Columns(**columns)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (7.5, "7.5"), (-7.0, "-7"), (10**20, "1" + 20 * "0")])
def test_numbers_are_text_without_a_needless_point(value: float, text: str) -> None:
    assert read_columns({"q": "?", "a": value}, Columns(prompt="q", answer="a"), "here").answer == text


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        (ROW, {"prompt": "question"}, "there is no column 'question'; expected one of story, ask"),
        (ROW, {"prompt": "{story} {aks}"}, "there is no column 'aks'"),
        (ROW, {"prompt": "found.text.9"}, "there is no column 'found.text.9'"),
        (ROW, {"prompt": "found"}, "found is dict"),
        ({"q": ""}, {"prompt": "q"}, "q is empty; expected text"),
        ({"q": None}, {"prompt": "q"}, "q is missing; expected text"),
        ({"q": float("nan")}, {"prompt": "q"}, "q is missing; expected text"),
        ({"q": True}, {"prompt": "q"}, "q is bool True; expected text"),
        ({"q": "\ud800"}, {"prompt": "q"}, "half a surrogate pair"),
        (ROW, {"prompt": "ask", "keep": ["tpic"]}, "there is no column 'tpic'"),
        ({"m": "hi"}, {"messages": "m"}, "messages are no JSON"),
        ({"m": []}, {"messages": "m"}, "messages is no list of messages"),
        ({"m": {"role": "user"}}, {"messages": "m"}, "messages is no list"),
        ({"m": [{"role": "user"}]}, {"messages": "m"}, "messages has at 0 no message"),
        ({"m": [{"role": "assistant", "content": "a"}]}, {"messages": "m"}, "messages is no list of messages"),
        ({"m": [{"role": "user", "content": " "}]}, {"messages": "m"}, "the message of user is str ' '"),
        ({"m": [3]}, {"messages": "m"}, "messages has at 0 no message"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: dict[str, Any], columns: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_columns(row, Columns(**columns), "file, line 3")
    assert str(caught.value).startswith("file, line 3: ")
    assert said in str(caught.value)


def test_the_last_turn_of_the_assistant_is_the_response() -> None:
    asked = read_columns({"m": TURNS}, Columns(messages="m"), "here")
    assert (asked.question, asked.response, list(asked.messages)) == ("3+4?", None, TURNS)
    answered = read_columns({"m": [*TURNS, {"role": "assistant", "content": "7"}]}, Columns(messages="m"), "here")
    assert (answered.question, answered.response, answered.messages) == ("3+4?", "7", asked.messages)


def test_other_names_of_turns_and_json_text_are_the_same_conversation() -> None:
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TURNS]
    cells = [read_columns({"m": given}, Columns(messages="m"), "") for given in (TURNS, other, json.dumps(other))]
    assert cells[0] == cells[1] == cells[2]


def test_a_system_column_makes_a_conversation() -> None:
    columns = Columns(prompt="q", system="s")
    cells = read_columns({"q": "3+4?", "s": "Be brief."}, columns, "")
    system = {"role": "system", "content": "Be brief."}
    assert list(cells.messages) == [system, {"role": "user", "content": "3+4?"}]
    talk = read_columns({"m": TURNS, "s": "Be brief."}, Columns(messages="m", system="s"), "")
    assert list(talk.messages) == [system, *TURNS]
    own = [{"role": "system", "content": "Be long."}, *TURNS]
    assert list(read_columns({"m": own, "s": "x"}, Columns(messages="m", system="s"), "").messages) == own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": ""}, "path: empty"),
        ({"columns": None}, "columns: null for 'a.csv'"),
        ({"layout": "math"}, "columns: given, and layout: math has its own"),
        ({"layout": "maths"}, "layout: 'maths' is unknown"),
        ({"columns": Columns(prompt="q", answer="a")}, "answer_kind: null, and columns.answer is given"),
        ({"answer_kind": "box"}, "answer_kind: 'box' is unknown"),
        ({"unfit_rows": "keep"}, "unfit_rows: 'keep' is unknown"),
        ({"weight": 0}, "weight: 0 is out of range"),
        ({"weight": 1001}, "weight: 1001 is out of range"),
        ({"num_rows": 0}, "num_rows: 0 is out of range"),
    ],
)
def test_a_wrong_source_is_an_error(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        Source(**{"path": "a.csv", "columns": Columns(prompt="q"), **settings})


def test_columns_without_prompt_and_messages_are_an_error() -> None:
    with pytest.raises(UserError, match=r"^columns\.prompt: null, and columns\.messages: null"):
        Columns(answer="a")
