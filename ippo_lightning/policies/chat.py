"""Chat templates: messages to the text that a model was trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import Conversation, Message
from ippo_lightning.tasks.prompt_template import chat_template_text

_MARK = "the response of the assistant"


def with_template(tokenizer: PreTrainedTokenizerBase, chat_template: bool | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the chat template that the user chose.

    Args:
        tokenizer: not changed.
        chat_template: false for none; true for the tokenizer's own; else a Jinja text, or the path of a file with one.

    Raises:
        UserError: the tokenizer has no template, or the file does not exist.
    """
    if chat_template is False:
        return tokenizer
    if chat_template is True:
        if not tokenizer.chat_template:
            raise UserError(
                "policy.chat_template: true, and the tokenizer has no template; give a Jinja text or its file, or false"
            )
        return tokenizer
    text = chat_template_text(chat_template, field="policy.chat_template")
    tokenizer = copy.deepcopy(tokenizer)  # the caller's object may serve another policy
    tokenizer.chat_template = text
    return tokenizer


def messages_of(prompt: str, system_prompt: str | None) -> list[Message]:
    """Return the messages that the policy reads for a prompt.

    Args:
        prompt: a text, which is the user's turn, or a `Conversation`.
        system_prompt: put in front unless the messages begin with a system message; None for the template's default.
    """
    own = prompt.messages if isinstance(prompt, Conversation) else ()
    messages: list[Message] = list(own) or [{"role": "user", "content": prompt}]
    if system_prompt is not None and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *messages]
    return messages


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the text that the model continues with the assistant's turn.

    Args:
        tokenizer: with a template.
        messages: see `messages_of`.

    Raises:
        UserError: the template refuses the messages.
    """
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def demonstration_texts(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str
) -> tuple[str, str]:
    """Return the text of the prompt, and the assistant's turn behind it with what the template writes at its end.

    Args:
        tokenizer: with a template.
        messages: see `messages_of`.
        response: of the assistant.

    Raises:
        UserError: the template refuses the messages.
    """
    prompt = prompt_text(tokenizer, messages)
    full = _rendered(tokenizer, [*messages, {"role": "assistant", "content": response}])
    turn = full[len(prompt) :]
    # Some templates open a tag in the prompt that they leave out of a written turn, or shorten the turn. Then the
    # response stands as it is behind the prompt that sampling continues, and ends as the template ends any turn.
    if full.startswith(prompt) and response.strip() in turn:
        return prompt, turn
    marked = _rendered(tokenizer, [*messages, {"role": "assistant", "content": _MARK}])
    return prompt, response + (marked.rpartition(_MARK)[2] if _MARK in marked else "")


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    try:
        text = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options)
    except Exception as error:  # a template is a program, and may raise anything, for example for an unknown role
        reason = " ".join(str(error).split())[:200]
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UserError(
            f"policy.chat_template: refuses messages of {roles}; {type(error).__name__}: {reason}"
        ) from error
    assert isinstance(text, str)
    return text
