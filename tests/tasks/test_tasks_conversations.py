"""A row may have messages in place of its prompt; graders and reports see a text all the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from ippo_lightning.data import TextDataModule
from ippo_lightning.data.loaders import collate_rows
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Conversation, row_prompt

MESSAGES = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3?"},
]


class MessagesTask:
    def __init__(self, messages: Any, prompt: dict[str, str] | None = None) -> None:
        self.row = {"messages": messages, "example": {"answer": "3"}, "response": "3", **(prompt or {})}

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [self.row]

    def grade(self, prompt: str, response: str, example: dict[str, Any]) -> bool:
        return prompt == "3?" and response == "3"


@pytest.mark.parametrize(("prompt", "text"), [({}, "3?"), ({"prompt": "What is 3?"}, "What is 3?")])
def test_a_batch_has_the_text_and_the_messages(prompt: dict[str, str], text: str) -> None:
    (found,) = collate_rows([MessagesTask(MESSAGES, prompt).row])["prompts"]
    assert found == text
    assert list(found.messages) == MESSAGES


def test_a_prompt_without_messages_stays_plain_text() -> None:
    assert type(row_prompt({"prompt": "1?", "example": {}})) is str


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda prompt: pickle.loads(pickle.dumps(prompt))], ids=["copy", "pickle"]
)
def test_messages_survive(duplicate: Any) -> None:
    again = duplicate(Conversation("3?", MESSAGES))
    assert (again, list(again.messages)) == ("3?", MESSAGES)


def test_a_task_of_messages_goes_through_the_data_module() -> None:
    data = TextDataModule(MessagesTask(MESSAGES), batch_size=1)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert (batch["prompts"], list(batch["prompts"][0].messages)) == (["3?"], MESSAGES)
    assert len(data.influence_dataloader()[0]["prompts"][0].messages) == 3


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("2+2?", "is no list of messages"),
        ([], "is no list of messages"),
        ([{"role": "user"}], "has at 0 no message"),
        ([MESSAGES[0], {"role": "user", "content": 3}], "has at 1 no message"),
        (MESSAGES[:2], "ends with the assistant"),
    ],
)
def test_wrong_messages_are_named(messages: Any, fault: str) -> None:
    with pytest.raises(UserError, match=f"data.task: .*messages of row 0 {fault}"):
        TextDataModule(MessagesTask(messages)).setup()
