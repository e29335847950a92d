"""What a task is: rows of prompts and demonstrations, and a grade for each response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from ippo_lightning.tasks.grades import Grade

Row = Mapping[str, Any]
"""One prompt: `prompt` (text), `example` (a mapping with what the task knows about it, `answer` among it if there is a
right one), and in demonstrations `response` (text, without EOS). A row may have `messages` in place of `prompt`: turns
with `role` and `content`, of which the policy writes the next. With both, graders and reports see the `prompt`."""

Split = Literal["prompts", "demonstrations", "validation", "test", "influence"]
"""`prompts`: training for PPO. `demonstrations`: training for SFT, with responses. `validation`, `test`: prompts.
`influence`: the demonstrations behind the filter's validation gradient, with responses."""

Grader = Callable[[str, str, Mapping[str, Any]], Grade | bool | float | str]
"""Called as `grader(prompt, response, example)`; see `as_grade` for what it may return."""


@runtime_checkable
class Task(Protocol):
    """A data set and the grading of its responses. A class needs no base to be one.

    More is optional: `prepare() -> None` downloads what the task needs and is called by one process per machine before
    `rows`. `can_grade` is False if the task knows no right answers; a run then needs a reward, and evaluation gives its
    mean.
    """

    # positional, so that a class may name its arguments as it likes
    def rows(self, split: Split, /) -> Sequence[Row]:
        """Return the rows of a split, the same on every call and every rank; empty if the task lacks the split."""
        ...

    def grade(self, prompt: str, response: str, example: Mapping[str, Any], /) -> Grade | bool | float | str:
        """Return the grade of a response. The text is hostile: never evaluate it, and bound time and size.

        Args:
            prompt: what the policy read.
            response: what the policy wrote, special tokens left out.
            example: the row's `example`.
        """
        ...


@runtime_checkable
class TaskLike(Protocol):
    """`Task` for a YAML file: the parser compares annotations word by word, and those of a user's class may differ."""

    def rows(self, split: Any, /) -> Any:
        """See `Task`."""
        ...

    def grade(self, prompt: Any, response: Any, example: Any, /) -> Any:
        """See `Task`."""
        ...


@runtime_checkable
class NeedsPreparation(Protocol):
    """A task that downloads something."""

    def prepare(self) -> None:
        """Download what the task needs; called by one process per machine, before `rows`."""
        ...
