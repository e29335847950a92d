"""Templates that a user gives: the prompt of a question, and the chat template of a model."""

from __future__ import annotations

from pathlib import Path

from ippo_lightning.errors import UserError

PLACEHOLDER = "{question}"


def check_template(template: str) -> None:
    """Refuse a template that leaves the question out.

    Raises:
        UserError: it does not contain `{question}`.
    """
    if PLACEHOLDER not in template:
        raise UserError(f"task.prompt_template: {template!r} does not contain {PLACEHOLDER}; add it once")


def fill_template(template: str, question: str) -> str:
    """Return the prompt of a question."""
    # not str.format: the template may contain other braces, and the question is text of a file
    return template.replace(PLACEHOLDER, question)


def chat_template_text(given: str, *, field: str) -> str:
    """Return a chat template that is given as its text or as a file.

    Args:
        given: a Jinja text, or the path of a file with one.
        field: the setting, as the user writes it.

    Raises:
        UserError: the file does not exist.
    """
    if "{" in given:  # every template prints something in braces
        return given
    path = Path(given)
    if not path.is_file():
        raise UserError(f"{field}: no file {given!r:.80}; give a Jinja text, its file, true or false")
    return path.read_text(encoding="utf-8")
