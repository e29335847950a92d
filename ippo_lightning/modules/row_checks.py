"""Checks of all rows before the first iteration: each must fit the model's context and its embedding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ippo_lightning.data import Splits, TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.tasks import Row, messages_fault, row_prompt

_SHOWN = 40  # characters of a prompt in a message


@dataclass(frozen=True, kw_only=True)
class ResponseRoom:
    """Tokens that must be free behind a prompt.

    Args:
        tokens: most tokens of a response.
        setting: the field that gives this number.
    """

    tokens: int
    setting: str


def check_rows_fit(policy: CausalLMPolicy, datamodule: object, uses: Mapping[str, ResponseRoom | None]) -> None:
    """Refuse rows that do not fit the context, or leave them out if the data module is told so.

    Args:
        policy: its tokenizer counts, and its model has the limit.
        datamodule: after its `setup`; a foreign one is not checked, because its rows are unknown.
        uses: by the name of a split in `Splits`, the room behind its prompts, or None for demonstrations, which contain
            their responses.

    Raises:
        UserError: a row is too long, is empty, or contains an id without an embedding; it is named by its number.
    """
    splits = getattr(datamodule, "splits", None)
    if not isinstance(splits, Splits) or not isinstance(datamodule, TextDataModule):
        return
    for split, room in uses.items():
        rows = getattr(splits, split)
        reasons: dict[int, str] = {}
        for place in range(len(rows)):
            reason = _overlong(policy, rows[place], f"data: row {place} of {split}", room)
            if reason is not None:
                reasons[place] = reason
                if datamodule.overlong_rows == "refuse":
                    raise UserError(f"{reason}; shorten it, or set data.overlong_rows: drop")
        if not reasons:
            continue
        first = next(iter(reasons.values()))
        if len(reasons) == len(rows):
            raise UserError(f"{first}; data.overlong_rows: drop would leave no row of {split}")
        warnings.warn(f"data.overlong_rows: drop leaves out {len(reasons)} of {len(rows)} rows; {first}", stacklevel=2)
        datamodule.leave_out(split, list(reasons))


def _overlong(policy: CausalLMPolicy, row: Row, name: str, room: ResponseRoom | None) -> str | None:
    """Return why a row does not fit, or None."""
    prompt, context = _prompt(row, name), policy.context_length
    if room is None:
        prompt_ids, response_ids = policy.text.demonstration_row(prompt, row["response"], name, name)
        length, limit, reason = len(prompt_ids) + len(response_ids), context, f"the model's context is {context}"
    else:
        length, limit = len(policy.text.prompt_row(prompt, name)), context - room.tokens
        reason = f"the model's context of {context} less {room.setting} = {room.tokens} leaves {limit}"
    return f"{name} has {length} tokens ({prompt[:_SHOWN]!r}), and {reason}" if length > limit else None


def _prompt(row: Row, name: str) -> str:
    messages: Any = row.get("messages")
    fault = None if messages is None else messages_fault(messages)
    if fault is not None:
        raise UserError(f"{name}: messages {fault}")
    if messages is None and not isinstance(row.get("prompt"), str):
        raise UserError(f"{name}: has no text as prompt and no messages")
    return row_prompt(row)
