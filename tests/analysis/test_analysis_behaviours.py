"""A behaviour is what the user named, and a wrong name is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ippo_lightning.analysis.behaviour_words import (
    NamedPair,
    NamedRecord,
    NamedResponse,
    NamedTransition,
    read_behaviour,
)
from ippo_lightning.errors import UserError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"observation": [[1, 2.5], [3, 4]], "action": 2},
         NamedTransition(observation=(1.0, 2.5, 3.0, 4.0), action=(2.0,))),
        ({"prompt": "1+1?", "response": "2"}, NamedResponse(prompt="1+1?", response="2")),
    ],
    ids=["transition", "response"],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "several lines"])
def test_a_file_names_a_behaviour(content: object, expected: object, indent: int | None, tmp_path: Path) -> None:
    file = tmp_path / "behaviour.jsonl"
    file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    assert read_behaviour(str(file)) == expected


def test_numbers_name_a_pair_or_a_record() -> None:
    assert read_behaviour("14:2") == NamedPair(observation=14, action=2)
    assert read_behaviour("record:5:17") == NamedRecord(iteration=5, row=17)


@pytest.mark.parametrize("text", ["14", "14:2:3", "record:5", "record:-1:2", "\u0661:\u0662", "", "nowhere.json"])
def test_another_word_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^behaviour: .* is no file; expected OBSERVATION:ACTION .*, or a JSON file$"):
        read_behaviour(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected an object with observation and action, or with prompt and response"),
        ('{"observation": [1]}', "expected an object with observation and action"),
        ('{"observation": [1, null], "action": 2}', "observation has 'None'; expected finite numbers"),
        ('{"observation": [1], "action": NaN}', "action has 'nan'; expected finite numbers"),
        ('{"observation": [true], "action": 1}', "observation has 'True'; expected finite numbers"),
        ('{"prompt": "a", "response": 3}', "response is int 3; expected text"),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "c"}\n', "2 records; expected one"),
        ("{", "line 1"),
        ("", "0 records; expected one"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
    ],
    ids=["list", "half", "null", "NaN", "true", "number", "two", "no JSON", "empty", "large"],
)
def test_a_file_of_another_content_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "behaviour.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^behaviour: ") as caught:
        read_behaviour(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
