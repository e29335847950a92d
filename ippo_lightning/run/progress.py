"""The progress bar: iterations done, time left, and the most important numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ippo_lightning.storage.untrusted_text import visible_text

# key of the log, name in the bar, format
_SHOWN = (
    ("rollout/reward_mean", "reward", "{:.2f}"),
    ("update/kept_fraction", "kept", "{:.0%}"),
    ("sft/loss", "loss", "{:.3f}"),
    ("exact_match", "EM", "{:.2f}"),
    ("unfaithful_fraction", "unf", "{:.2f}"),
)


class ProgressBar:
    """A bar that fits 80 columns; silent if it is turned off or if the output is no terminal.

    Args:
        enabled: False on all ranks but the first, and if the user wants none.
        total: iterations of the run.
        title: text before the bar.
    """

    def __init__(self, *, enabled: bool, total: int, title: str) -> None:
        # Standard error, so that the output of a command can be piped without the bar.
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.numbers: dict[str, float] = {}
        self.task = self.progress.add_task(visible_text(title), total=total, numbers="")

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, *, completed: int, numbers: Mapping[str, float]) -> None:
        """Show how many iterations are done, and new values of the numbers.

        Args:
            completed: iterations done.
            numbers: any part of the log; numbers that the bar does not show are ignored.
        """
        # Kept: an evaluation brings other numbers than an iteration, and the bar shows both.
        self.numbers.update(numbers)
        self.progress.update(self.task, completed=completed, numbers=summary_line(self.numbers))

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        # No markup: a path may contain brackets, which rich would read as a style.
        self.console.print(visible_text(line, multiline=True), markup=False, highlight=False)


def summary_line(numbers: Mapping[str, float]) -> str:
    """Return the numbers in a few words, at most 36 columns; NaN (0 / 0) is left out."""
    words = [
        f"{word} {form.format(numbers[key])}"
        for key, word, form in _SHOWN
        if key in numbers and not math.isnan(numbers[key])
    ]
    return " ".join(words)
