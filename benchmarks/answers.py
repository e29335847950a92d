"""How many right answers are accepted, and how many wrong ones rejected, on all records of the real data sets.

    python benchmarks/answers.py                        # about ten minutes on one core
    python benchmarks/answers.py --sets gsm8k ecqa --per_set 100

Each right answer is written into a response and read again. Then it is made wrong: one digit, the sign, a numerator,
another option, or the answer of another record. `rewritten` are right answers of another spelling: `a/b` for a
fraction, a fraction for a decimal. The data are found in IPPO_DATA, or in shared/data beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ippo_lightning.tasks.answers import AnswerKind, extract_answer, same_answer
from ippo_lightning.tasks.answers.equivalence import plain_math
from ippo_lightning.tasks.answers.extraction import plain_option

SETS: dict[str, AnswerKind] = {
    "gsm8k": "hash",
    "math500": "boxed",
    "math_train": "boxed",
    "college_math": "boxed",
    "olympiadbench": "boxed",
    "ecqa": "option",
    "mawps": "number",
    "svamp": "number",
    "asdiv": "number",
}
WRITTEN = {
    "hash": "The steps come first.\n#### {}",
    "boxed": "Therefore the answer is $\\boxed{{{}}}$.",
    "option": "The first option fits best.\nThe answer is {}.",
    "number": "After 12 steps, the answer is {}.",
}
_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_NO_SIGN = re.compile(r"[A-Za-z]{2}|0(?:\.0*)?(?![0-9.])")


@dataclass
class Figures:
    """What was counted for one data set."""

    kind: str
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Right answers that were not accepted."""
    rejected: int = 0
    mistaken: list[tuple[str, str]] = field(default_factory=list)
    """Right and wrong answer, where the wrong one was accepted."""
    rewritten: int = 0
    missed: list[tuple[str, str]] = field(default_factory=list)
    """Right answer and its other spelling, where that was rejected."""
    without: int = 0
    """Records without an answer."""


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--per_set", type=int, help="the first so many records in a fixed random order; default all")
    parser.add_argument("--json", help="file for the numbers and the answers that fail")
    options = parser.parse_args()
    table = Table("data", "kind", "records", "accepted", "made wrong", "rejected", "rewritten", "accepted ")
    found: dict[str, Figures] = {}
    for name in options.sets:
        figures = found[name] = figures_of(name, data_folder(), per_set=options.per_set)
        right = len(figures.accepted) + len(figures.refused)
        wrong, spelled = figures.rejected + len(figures.mistaken), figures.rewritten + len(figures.missed)
        table.add_row(
            name,
            figures.kind,
            str(right),
            percent(len(figures.accepted), right),
            str(wrong),
            percent(figures.rejected, wrong),
            str(spelled),
            percent(figures.rewritten, spelled),
        )
    Console(width=110).print(table)
    if options.json:
        content = {name: {**vars(figures), "accepted": len(figures.accepted)} for name, figures in found.items()}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def percent(part: int, whole: int) -> str:
    """Return a part as a percentage, "-" of nothing."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def data_folder() -> Path:
    """Return the folder of the real data."""
    return Path(os.environ.get("IPPO_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def figures_of(name: str, folder: Path, *, per_set: int | None = None) -> Figures:
    """Return the figures of one data set.

    Args:
        name: one of `SETS`.
        folder: with the data.
        per_set: how many records, drawn with a fixed seed; None for all.
    """
    kind, draw = SETS[name], random.Random(name)
    records = list(READERS[name](folder))
    if per_set is not None:
        records = draw.sample(records, min(per_set, len(records)))
    answers = [answer for answer, _ in records if answer]
    figures = Figures(kind)
    for gold, options in records:
        if not gold:
            figures.without += 1
            continue
        (figures.accepted if is_accepted(gold, gold, kind, options) else figures.refused).append(gold)
        for wrong in made_wrong(gold, kind, options=options, answers=answers, draw=draw):
            if is_accepted(wrong, gold, kind, options):
                figures.mistaken.append((gold, wrong))
            else:
                figures.rejected += 1
        for other in other_spellings(gold) if kind == "boxed" else ():
            if is_accepted(other, gold, kind, options):
                figures.rewritten += 1
            else:
                figures.missed.append((gold, other))
    return figures


def is_accepted(answer: str, gold: str, kind: AnswerKind, options: list[str] | None) -> bool:
    """Return whether a response with this answer is right."""
    return same_answer(extract_answer(WRITTEN[kind].format(answer), kind, options), gold, kind)


def made_wrong(
    gold: str, kind: AnswerKind, *, options: list[str] | None, answers: list[str], draw: random.Random
) -> Iterator[str]:
    """Yield answers that differ from the right one in value.

    Args:
        gold: the right answer.
        kind: of the answer.
        options: the texts to choose from, or None.
        answers: of all records.
        draw: decides about the places.
    """
    if options is not None:
        yield draw.choice([option for option in options if plain_option(option) != plain_option(gold)])
        return
    places = [place for place, letter in enumerate(gold) if letter in "0123456789"]
    if not places:
        others = [answer for answer in answers if plain_math(answer).lower() != plain_math(gold).lower()]
        if others:
            yield draw.choice(others)
        return
    place = draw.choice(places)
    digit = draw.choice([digit for digit in "0123456789" if digit != gold[place]])
    yield gold[:place] + digit + gold[place + 1 :]
    # The sign of zero, of a value that has both signs, of one side of an equation, and of a sentence changes nothing.
    if not _NO_SIGN.match(gold) and "\\pm" not in gold and "=" not in gold:
        yield gold[1:] if gold.startswith("-") else f"-{gold}"
    if found := _FRACTION.search(gold):
        yield gold[: found.start(1)] + str(int(found[1]) + 1) + gold[found.end(1) :]


def other_spellings(gold: str) -> Iterator[str]:
    """Yield other spellings of a fraction or a decimal.

    Args:
        gold: the right answer.
    """
    if found := _FRACTION.fullmatch(gold):
        yield f"{found[1]}/{found[2]}"
    if found := re.fullmatch(r"(-?)([0-9]+)\.([0-9]{1,6})", gold):
        yield f"{found[1]}\\frac{{{int(found[2] + found[3])}}}{{{10 ** len(found[3])}}}"


Records = Iterator[tuple[str | None, list[str] | None]]


def lines(file: Path) -> Iterator[Any]:
    """Yield the objects of a file, one per line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def gsm8k(folder: Path) -> Records:
    """Training and test questions."""
    for split in ("train", "test"):
        for row in lines(folder / "gsm8k" / f"{split}.jsonl"):
            yield row["answer"].rpartition("####")[2].strip().replace(",", ""), None


def keyed(*files: str, key: str) -> Any:
    """Return a reader of one key, without the dollar signs around a formula."""

    def read(folder: Path) -> Records:
        for pattern in files:
            for file in sorted(folder.glob(pattern)):
                for row in lines(file):
                    yield _text(row[key]), None

    return read


def _text(value: Any) -> str | None:
    if isinstance(value, list):  # OlympiadBench: one text, with all answers
        value = value[0]
    if isinstance(value, float):
        return f"{value:.12g}"
    return None if value is None else str(value).strip().removeprefix("$").removesuffix("$")


def ecqa(folder: Path) -> Records:
    """Training questions with five options each."""
    for line in (folder / "ecqa" / "ecqa_train.tsv").read_text(encoding="utf-8").splitlines():
        question, answer, _ = line.split("\t")
        yield answer, [part[2:] for part in question.split("\\n") if part.startswith("- ")]


def asdiv(folder: Path) -> Records:
    """Answers without their units."""
    for row in lines(folder / "easy_arithmetic" / "asdiv.test.jsonl"):
        yield row["answer"].split(" (")[0], None


READERS: dict[str, Any] = {
    "gsm8k": gsm8k,
    "math500": keyed("math/math500_test.jsonl", key="answer"),
    "math_train": keyed("math/train_answers.jsonl", key="answer"),
    "college_math": keyed("college_math/test_cc_by.jsonl", key="answer"),
    "olympiadbench": keyed("olympiadbench/test.jsonl", key="final_answer"),
    "ecqa": ecqa,
    "mawps": keyed("easy_arithmetic/mawps.*.jsonl", key="target"),
    "svamp": keyed("easy_arithmetic/svamp.test.jsonl", key="Answer"),
    "asdiv": asdiv,
}


if __name__ == "__main__":
    main()
