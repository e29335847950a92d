"""Questions and answers of MAWPS, SVAMP and ASDiv from files of one JSON object per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.json_lines import check_text, json_lines
from ippo_lightning.tasks.word_problems.grading import Step
from ippo_lightning.tasks.word_problems.numbers import numbers_of, parse_number, write_number
from ippo_lightning.tasks.word_problems.search import find_steps

Source = Literal["mawps", "svamp", "asdiv"]
_KEYS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mawps": (("input",), "target"),
    "svamp": (("Body", "Question"), "Answer"),
    "asdiv": (("body", "question"), "answer"),
}
"""The keys whose texts make up the question, and the key of the answer."""
_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its answer."""

    question: str
    answer: Fraction

    @property
    def key(self) -> str:
        """The question without case, spaces and punctuation: files spell one question in several ways."""
        return _NOT_A_WORD.sub("", self.question.lower())

    @property
    def order(self) -> bytes:
        """A place in an order that does not depend on the files."""
        return sha256(self.key.encode()).digest()

    def steps(self) -> tuple[Step, ...] | None:
        """Return one or two steps from the question's numbers to the answer; None if there are none."""
        return find_steps(numbers_of(self.question), self.answer)


def load_problems(path: str, source: Source) -> list[Problem]:
    """Return the problems of one source, each question once, ordered by a hash of the question.

    Problems whose answer is no number, or is none that six decimals can write, are left out.

    Args:
        path: folder with files `<source>*.jsonl`.
        source: `mawps` has `input` and `target`, `svamp` `Body`, `Question` and `Answer`, `asdiv` `body`, `question`
            and `answer`.

    Raises:
        UserError: there is no such file, or a line is malformed; the message names it.
    """
    folder = Path(path).expanduser()
    files = sorted(folder.glob(f"{source}*.jsonl"))
    if not files:
        raise UserError(f"task.path: {str(folder)!r} has no file {source}*.jsonl; expected the folder of the questions")
    found: dict[str, Problem] = {}
    for problem in (problem for file in files for problem in _read(json_lines(file), source)):
        found.setdefault(problem.key, problem)
    if not found:
        raise UserError(f"task.path: {str(folder)!r}: {source}*.jsonl has no problem with a number as answer")
    return sorted(found.values(), key=lambda problem: problem.order)


def _read(lines: Iterable[tuple[str, Any]], source: Source) -> Iterable[Problem]:
    parts, answer_key = _KEYS[source]
    for place, row in lines:
        if not isinstance(row, dict):
            raise UserError(f"{place}: {type(row).__name__}; expected an object with {', '.join((*parts, answer_key))}")
        question = " ".join(check_text(row.get(part), part, place).strip() for part in parts)
        if answer_key not in row:
            raise UserError(f"{place}: {answer_key} is missing; expected a number")
        # ASDiv writes the unit behind the number: "9 (apples)"
        answer = parse_number(str(row[answer_key]).split(" (")[0])
        if answer is not None and write_number(answer) is not None:
            yield Problem(question, answer)
