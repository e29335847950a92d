"""Prompts in two splits are found, whatever their case and spaces."""

from __future__ import annotations

from typing import Any

import pytest

from ippo_lightning.tasks import ArithmeticTask
from ippo_lightning.tasks.leaks import find_leaks


def rows(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "example": {}} for prompt in prompts]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"prompts": rows("2 + 3"), "test": rows("2 - 3")}, []),
        ({"prompts": rows("A b", "c"), "test": rows("a  B\n")}, [("prompts", "test", 1)]),
        ({"prompts": rows("a", "b"), "demonstrations": rows("a", "b")}, []),
        (
            {"demonstrations": rows("a"), "influence": rows("a"), "validation": rows()},
            [("demonstrations", "influence", 1)],
        ),
        ({"validation": rows("a", "b", "a"), "test": rows("b", "a")}, [("validation", "test", 2)]),
    ],
    ids=["signs", "spelling", "training", "influence", "evaluation"],
)
def test_shared_prompts_are_found(splits: dict[str, Any], expected: list[Any]) -> None:
    assert [leak[:3] for leak in find_leaks(splits)] == expected


def test_conversations_are_compared_by_all_their_messages() -> None:
    def talk(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text} for text in texts], "example": {}}

    assert not find_leaks({"prompts": [talk("a", "c")], "test": [talk("b", "c")]})
    assert find_leaks({"prompts": [talk("a", "c")], "test": [talk("a", "c")]})[0].example == "c"


def test_the_arithmetic_task_has_none() -> None:
    task = ArithmeticTask(num_train=200, num_validation=50, num_test=50)
    assert not find_leaks({split: task.rows(split) for split in ("prompts", "demonstrations", "validation", "test")})


@pytest.mark.parametrize("prompt", [None, 3])
def test_a_row_without_a_prompt_is_left_to_the_check_of_the_prompts(prompt: Any) -> None:
    both: list[Any] = [{"prompt": prompt, "example": {}}, {"prompt": "b", "example": {}}]
    (leak,) = find_leaks({"prompts": both, "test": both})
    assert leak.num_prompts == 1
