"""Progress of a run: a bar at a terminal, and a line per iteration where there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ippo_lightning.storage.terminal_lines import broken_between_words
from ippo_lightning.storage.untrusted_text import visible_text

_KEPT, _SCORED_KEPT = "update/kept_fraction", "influence/scored_kept_fraction"
# key of the log, name in the bar, format
_SHOWN = (
    ("rollout/reward_mean", "reward", "{:.2f}"),
    ("rollout/episode_return", "return", "{:.4g}"),
    (_KEPT, "kept", "{:.0%}"),
    ("sft/loss", "loss", "{:.3f}"),
    ("exact_match", "EM", "{:.2f}"),
    ("unfaithful_fraction", "unf", "{:.2f}"),
)
_IN_A_LINE = (
    ("rollout/reward_mean", "reward", "{:.3f}"),
    ("rollout/episode_return", "return", "{:.4g}"),
    ("rollout/kl", "KL", "{:.3f}"),
    (_KEPT, "kept", "{:.0%}"),
    ("sft/loss", "loss", "{:.4f}"),
    ("time/iteration_seconds", "", "{:.1f} s"),
)


_OF_TEXTS = ("rollout/reward_mean", "rollout/kl")
"""Of a step in an environment, whose episodes have a return, these tell nothing."""


def kept_fraction(numbers: Mapping[str, float]) -> float | None:
    """Return the kept fraction that is worth showing; None if nothing filters.

    Args:
        numbers: of an iteration. A filter that only monitors drops nothing: its fraction is what its rule would keep.
    """
    kept = numbers.get(_KEPT)
    if kept != 1.0:
        return kept
    # Without a filter nothing can be dropped, and 100 % is no news.
    return numbers.get(_SCORED_KEPT, kept) if any(name.startswith("influence/") for name in numbers) else None


class ProgressBar:
    """A bar that fits 80 columns; without a terminal a line per iteration and evaluation; nothing if it is turned off.

    Args:
        enabled: False on all ranks but the first, and if the user wants none.
        total: iterations of the run.
        title: text before the bar.
    """

    def __init__(self, *, enabled: bool, total: int, title: str) -> None:
        # Standard error, so that the output of a command can be piped without the bar. Soft wrap, because what others
        # print during the run goes through this console, and a path that is broken inside cannot be copied.
        self.console = Console(stderr=True, soft_wrap=True)
        self.total = total
        self.writes_lines = enabled and not self.console.is_terminal
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
        self._evaluated_at: int | None = None
        """Iterations done at the newest evaluation."""
        self._begun: tuple[float, int] | None = None
        """When the first number of iterations became known, and that number: a resumed run does not begin at 0."""

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, *, completed: int, numbers: Mapping[str, float], is_evaluation: bool = False) -> None:
        """Show how many iterations are done, and new values of the numbers.

        Args:
            completed: iterations done.
            numbers: any part of the log; numbers that the bar does not show are ignored.
            is_evaluation: whether the numbers are those of an evaluation, or else of an iteration.
        """
        if self._begun is None:
            self._begun = (time.monotonic(), completed)
        if self.writes_lines and numbers:
            self.say(self._evaluation_line(completed, numbers) if is_evaluation else self._line(completed, numbers))
        # Kept: an evaluation brings other numbers than an iteration, and the bar shows both.
        self.numbers.update(numbers)
        if is_evaluation:
            self._evaluated_at = completed
        is_old = self._evaluated_at not in (None, completed)
        line = summary_line(self.numbers, evaluated_at=self._evaluated_at if is_old else None)
        self.progress.update(self.task, completed=completed, numbers=line)

    def _line(self, completed: int, numbers: Mapping[str, float]) -> str:
        return f"iteration {completed}/{self.total}: {_words(numbers, _IN_A_LINE)}{self.left(completed)}"

    def _evaluation_line(self, completed: int, numbers: Mapping[str, float]) -> str:
        # Without the groups, such as the fraction of each label: there may be any number of them.
        shown = [(name, name, "{:.3f}") for name in numbers if "/" not in name]
        return f"evaluation {completed}/{self.total}: {_words(numbers, shown)}"

    def left(self, completed: int) -> str:
        """Return the time that is probably left in words that begin with a comma; empty if nothing is known of it.

        Args:
            completed: iterations done.
        """
        begun, before = self._begun or (time.monotonic(), completed)
        if completed <= before or completed >= self.total:
            return ""
        seconds = (time.monotonic() - begun) / (completed - before) * (self.total - completed)
        return f", {_duration(seconds)} left"

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        # One line in a log, which is searched by lines; at a terminal, lines break between words.
        width = self.console.width if self.console.is_terminal else None
        text = broken_between_words(visible_text(line, multiline=True), width)
        # No markup: a path may contain brackets, which rich would read as a style.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary_line(numbers: Mapping[str, float], *, evaluated_at: int | None = None) -> str:
    """Return the numbers in a few words, at most 36 columns; NaN (0 / 0) is left out.

    Args:
        numbers: of the newest iteration and the newest evaluation.
        evaluated_at: iterations done at that evaluation, if there have been more since.

    Example:
        >>> summary_line({"rollout/reward_mean": 0.5, "exact_match": 0.25, "unfaithful_fraction": 0.1}, evaluated_at=6)
        'reward 0.50 EM@6 0.25'
    """
    # An old evaluation states when it was; for its second number there is no room then.
    shown = _SHOWN if evaluated_at is None else _SHOWN[:-1]
    when = "" if evaluated_at is None else f"@{evaluated_at}"
    words = [
        f"{word}{when if key == 'exact_match' else ''} {form.format(value)}"
        for key, word, form in shown
        if (value := _told(key, numbers)) is not None and not math.isnan(value)
    ]
    return " ".join(words)


def _words(numbers: Mapping[str, float], shown: Sequence[tuple[str, str, str]]) -> str:
    """Return numbers with their names, between commas; NaN (0 / 0) and what does not exist are left out."""
    known = [(word, form, value) for key, word, form in shown if (value := _told(key, numbers)) is not None]
    return ", ".join(
        f"{visible_text(word)} {form.format(value)}".strip() for word, form, value in known if value == value
    )


def _told(key: str, numbers: Mapping[str, float]) -> float | None:
    """Return a number that is worth telling; None for one that is not."""
    if key == _KEPT:
        return kept_fraction(numbers)
    return None if key in _OF_TEXTS and "rollout/episode_return" in numbers else numbers.get(key)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
