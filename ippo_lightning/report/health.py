"""Is a run healthy? Each number with the range that is good, a word, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ippo_lightning.report.display import in_words, percent, plain
from ippo_lightning.report.health_checks import CHECKS, Check, Word
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.wording import wording

_WORST = ("bad", "watch", "good")
_CHECKED_METHODS = re.compile(r"^\s+method: (hooks|forward)\s*$", re.MULTILINE)
_OTHER_METHODS = re.compile(r"^\s+method: (finite_difference|per_episode)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """One number of one method."""

    shown: str
    word: Word


@dataclass(frozen=True)
class HealthRow:
    """One number of all methods."""

    title: str
    meaning: str
    good: str
    """The range that is good, in words."""
    verdicts: Mapping[str, Verdict]
    """By the name of the method; without methods that did not record the number."""
    advice: str
    """What to do about the worst verdict; empty if all are good."""

    @property
    def worst(self) -> Word:
        """The worst word of all methods."""
        words = {verdict.word for verdict in self.verdicts.values()}
        return next(word for word in _WORST if word in words)


def health(comparison: Comparison) -> list[HealthRow]:
    """Judge what the runs recorded about themselves.

    Args:
        comparison: the runs that finished count.

    Returns:
        One row per number that at least one run recorded, the worst rows first.
    """
    words = wording(comparison)
    rows = [row for check in CHECKS if (row := _row(comparison, check, words)) is not None]
    exact = _exactness(comparison)
    rows += [exact] if exact is not None else []
    # `sorted` keeps the order of equals, so rows of one word stay in the order of `CHECKS`.
    return sorted(rows, key=lambda row: _WORST.index(row.worst))


def health_words(rows: list[HealthRow], methods: Sequence[Method]) -> list[str]:
    """Return in sentences what is bad about methods, or worth watching; methods with the same verdicts share one.

    Args:
        rows: from `health`.
        methods: whose verdicts count; one that recorded no number has no sentence.
    """
    sentences: dict[str, list[str]] = {}
    for method in methods:
        words = {row.title: row.verdicts[method.name].word for row in rows if method.name in row.verdicts}
        if words:
            sentences.setdefault(_verdicts(words), []).append(method.title)
    return [f"Health of {in_words(titles)}: {verdicts}." for verdicts, titles in sentences.items()]


def _verdicts(words: Mapping[str, Word]) -> str:
    bad, watch = ([title for title, found in words.items() if found == word] for word in ("bad", "watch"))
    parts = [f"{len(bad)} bad ({_listed(bad)})"] if bad else []
    parts += [f"{len(watch)} to watch ({_listed(watch)})"] if watch else []
    num_good = len(words) - len(bad) - len(watch)
    return ", ".join([*parts, *([f"{num_good} good"] if num_good else [])])


def value_of(method: Method, check: Check) -> float | None:
    """Return a number of a method, mean over its finished runs; None if none of them recorded it."""
    runs = [run for run in method.finished if not (check.is_of_texts and run.is_control)]
    found = [value for run in runs if (value := check.read(run)) is not None]
    return fmean(found) if found else None


def _success(method: Method, check: Check) -> bool | None:
    """Return what is known of all runs of a method: the least of them."""
    if check.is_success is None:
        return None
    found = {check.is_success(run) for run in method.finished}
    return None if None in found else all(found)


def _row(comparison: Comparison, check: Check, words: Callable[[str], str]) -> HealthRow | None:
    found = {
        name: value for name, method in comparison.methods.items() if (value := value_of(method, check)) is not None
    }
    if not found:
        return None
    show = (lambda value: f"{percent(value)} %") if check.is_percent else plain
    success = {name: _success(comparison.methods[name], check) for name in found}
    verdicts = {name: Verdict(show(value), check.word(value, success=success[name])) for name, value in found.items()}
    worst = min(found, key=lambda name: _WORST.index(verdicts[name].word))
    return HealthRow(
        title=words(check.title),
        meaning=words(check.meaning),
        good=check.good_words,
        verdicts=verdicts,
        advice="" if verdicts[worst].word == "good" else words(check.advice(found[worst], success=success[worst])),
    )


def _exactness(comparison: Comparison) -> HealthRow | None:
    """Return whether scores were compared with plain autograd, as far as the settings of the runs tell."""
    verdicts: dict[str, Verdict] = {}
    for name, method in comparison.methods.items():
        # Scores without gradients have nothing to be compared with.
        scored = [run for run in method.finished if run.series("influence/gradient_norm")]
        if scored and all(_CHECKED_METHODS.search(run.config) for run in scored):
            verdicts[name] = Verdict("passed", "good")
        elif any(_OTHER_METHODS.search(run.config) for run in scored):
            verdicts[name] = Verdict("not made", "watch")
    if not verdicts:
        return None
    return HealthRow(
        title="Exactness check of the scores",
        meaning="Each iteration compares the scores of its first pass with plain autograd. A difference ends the run.",
        good="passed",
        verdicts=verdicts,
        advice="Finite differences have no such check: score a few iterations with scoring.method: hooks as well."
        if any(verdict.word != "good" for verdict in verdicts.values())
        else "",
    )


def _listed(titles: list[str]) -> str:
    # In the middle of a sentence; a name such as "KL" keeps its capitals.
    lowered = [title if title[1:2].isupper() else title[:1].lower() + title[1:] for title in titles]
    return ", ".join(lowered)
