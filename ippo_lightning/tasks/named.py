"""This library's own tasks by their short names."""

from __future__ import annotations

from collections.abc import Mapping

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.arithmetic.task import ArithmeticTask
from ippo_lightning.tasks.gsm8k.task import GSM8KTask
from ippo_lightning.tasks.protocol import Task
from ippo_lightning.tasks.word_problems.task import WordProblemsTask

TASKS: Mapping[str, type[ArithmeticTask] | type[GSM8KTask] | type[WordProblemsTask]] = {
    "arithmetic": ArithmeticTask,
    "gsm8k": GSM8KTask,
    "word_problems": WordProblemsTask,
}
"""Short name to class."""


def named_task(name: str) -> Task:
    """Return the task with this short name, with its default arguments.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"data.task: {name!r:.60} is unknown; expected {known}, or a class_path with init_args")
    return TASKS[name]()
