"""The cells of a row by the user's own columns: question, messages, response and answer."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.conversations import Message, messages_fault
from ippo_lightning.tasks.json_lines import check_text
from ippo_lightning.tasks.questions.sources import Columns

_NAME = re.compile(r"\{([^{}]+)\}")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Names of roles in data sets with `from` and `value`."""


@dataclass(frozen=True, slots=True)
class Cells:
    """What a row contains."""

    question: str
    """The text that graders and reports see."""
    response: str | None = None
    answer: str | None = None
    messages: tuple[Message, ...] = ()
    """The turns that the policy reads, if the row is a conversation."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """More of the row, for rewards and graders."""


def read_columns(row: Mapping[str, Any], columns: Columns, place: str) -> Cells:
    """Return what the columns of a row contain.

    Args:
        row: cells by the names of their columns.
        columns: see `Columns`.
        place: of the row, for messages.

    Raises:
        UserError: a column is missing or empty, or a conversation is none; the message begins with the place.
    """
    messages: tuple[Message, ...] = ()
    response = None
    if columns.messages is not None:
        messages, response = conversation(_cell(row, columns.messages, place), place)
    if columns.response is not None:
        response = _text(row, columns.response, place)
    question = messages[-1]["content"] if columns.prompt is None else _text(row, columns.prompt, place)
    if columns.first_words is not None:
        # here, before questions are compared: two texts with the same beginning are one prompt
        question = " ".join(question.split(maxsplit=columns.first_words)[: columns.first_words])
    if columns.system is not None and (not messages or messages[0]["role"] != "system"):
        turns = messages or ({"role": "user", "content": question},)
        messages = ({"role": "system", "content": _text(row, columns.system, place)}, *turns)
    answer = None if columns.answer is None else _text(row, columns.answer, place)
    kept = {name: _cell(row, name, place) for name in columns.keep}
    return Cells(question, response, answer, messages, kept)


def conversation(given: Any, place: str) -> tuple[tuple[Message, ...], str | None]:
    """Return the messages before the last turn of the assistant, and that turn; None if the user has the last word.

    Args:
        given: a list of `role` and `content`, or of `from` and `value`; or that as JSON text.
        place: of the row, for messages.

    Raises:
        UserError: it is no such list.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: messages are no JSON; expected a list of role and content") from error
    turns = [_turn(turn) for turn in given] if isinstance(given, Sequence) and not isinstance(given, str) else given
    response = None
    if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping) and turns[-1].get("role") == "assistant":
        response = check_text(turns[-1].get("content"), "the last message", place)
        turns = turns[:-1]
    fault = messages_fault(turns)
    if fault is not None:
        raise UserError(f"{place}: messages {fault}")
    for turn in turns:
        check_text(turn["content"], f"the message of {turn['role']}", place)
    return tuple(turns), response


def plain_text(value: Any, name: str, place: str) -> str:
    """Return a cell as text; a number without decimals is written without a point.

    Args:
        value: of the cell.
        name: of the column, for messages.
        place: of the row, for messages.

    Raises:
        UserError: the cell is empty, or is neither text nor a number.
    """
    if isinstance(value, float) and math.isnan(value):  # what tables have for an empty cell
        value = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return check_text(value, name, place)


def _turn(turn: Any) -> Any:
    """Return a turn with `role` and `content`; anything else as it is, for the check."""
    if not isinstance(turn, Mapping):
        return turn
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    """Return a column as text, or a text with columns in braces."""
    names = _NAME.findall(name)
    if name in row or not names:
        return plain_text(_cell(row, name, place), name, place)
    return _NAME.sub(lambda found: plain_text(_cell(row, found[1], place), found[1], place), name)


def _cell(row: Mapping[str, Any], name: str, place: str) -> Any:
    """Return what is in a column; dots lead into objects and lists."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            near = difflib.get_close_matches(name, [str(column) for column in row], n=1, cutoff=0.6)
            known = ", ".join(map(str, row))[:120]
            hint = f"did you mean {near[0]!r}? There are {known}" if near else f"expected one of {known}"
            raise UserError(f"{place}: there is no column {name!r}; {hint}")
    return value
