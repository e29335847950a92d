"""Prompts of several turns: a text for graders and reports that keeps the messages the policy reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""One turn: `role` (`system`, `user`, `assistant`, ...) and `content` (text)."""


class Conversation(str):
    """The text of a prompt together with its messages.

    It is a text like any other prompt, so batches, episodes, graders and rewards take it as it is. A policy with
    `chat_template` reads the messages.

    Example:
        >>> prompt = Conversation("And 3+4?", [{"role": "user", "content": "And 3+4?"}])
        >>> prompt == "And 3+4?", len(prompt.messages)
        (True, 1)
    """

    messages: tuple[Message, ...]

    def __new__(cls, text: str = "", messages: Sequence[Message] = ()) -> Conversation:
        """Return the text with its messages; pickle passes the text alone and restores the messages afterwards.

        Args:
            text: what graders, rewards and reports see.
            messages: the turns in their order; the policy writes the next one.
        """
        made = super().__new__(cls, text)
        made.messages = tuple(messages)
        return made


def row_prompt(row: Mapping[str, Any]) -> str:
    """Return the prompt of a row; one with messages is a `Conversation`.

    Its text is the row's `prompt` if there is one, else the content of the last message.

    Args:
        row: see `ippo_lightning.tasks.Row`.
    """
    messages = row.get("messages")
    if messages is None:
        prompt: str = row["prompt"]
        return prompt
    return Conversation(row.get("prompt", messages[-1]["content"]), messages)


def messages_fault(messages: object) -> str | None:
    """Return what is wrong with the `messages` of a row, or None.

    Args:
        messages: what a task gave.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not len(messages):
        return "is no list of messages; expected at least one mapping with role and content"
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            return f"has at {index} no message; expected a mapping with role and content, both text"
    if messages[-1]["role"] == "assistant":
        return "ends with the assistant, so there is nothing to answer; give that turn as response"
    return None
