"""The prompt of a question: a text with `{question}` where the question goes."""

from __future__ import annotations

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
