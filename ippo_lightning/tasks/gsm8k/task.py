"""Grade-school word problems as a task: what is held out, the prompt, and the grade."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.tasks.first_rank import is_first_rank
from ippo_lightning.tasks.grades import Grade
from ippo_lightning.tasks.gsm8k.grading import grade_gsm8k, gsm8k_answer
from ippo_lightning.tasks.gsm8k.question_files import Record, is_folder, load_records
from ippo_lightning.tasks.prompt_template import check_template, fill_template
from ippo_lightning.tasks.protocol import Row, Split

logger = logging.getLogger(__name__)


class GSM8KTask:
    """GSM8K, or any questions with worked answers that end in `#### number`.

    Validation questions and the filter's demonstrations are held out of the training file by a hash of the question,
    so they do not depend on the order of the file. A question that comes twice counts once.

    Args:
        path: a folder with `train.jsonl` and `test.jsonl` (one object with `question` and `answer` per line), or the
            id of a data set on the Hub.
        config_name: of the data set on the Hub.
        revision: branch, tag or commit of the data set on the Hub; null for its newest.
        num_train: training questions, the first ones of the file; null for all.
        num_validation: validation questions.
        num_test: test questions, the first ones of the file; null for all.
        num_demonstrations: demonstrations for SFT, over the first training questions; null for all of them.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        max_characters: problems with a longer question or worked answer are left out of every split; null for no limit.
        prompt_template: the prompt, with `{question}` where the question goes.

    Raises:
        UserError: an argument is out of its range; in `prepare` and `rows`, the data is missing or malformed, or
            no training question is left.
    """

    def __init__(
        self,
        *,
        path: str = "openai/gsm8k",
        config_name: str | None = "main",
        revision: str | None = None,
        num_train: int | None = None,
        num_validation: int = 128,
        num_test: int | None = None,
        num_demonstrations: int | None = None,
        num_influence_demonstrations: int = 64,
        max_characters: int | None = None,
        prompt_template: str = "{question}\n",
    ) -> None:
        counts = {
            "num_train": num_train,
            "num_validation": num_validation,
            "num_test": num_test,
            "num_demonstrations": num_demonstrations,
            "num_influence_demonstrations": num_influence_demonstrations,
        }
        for name, count in counts.items():
            if count is not None:
                require_range(f"task.{name}", count, at_least=0, integer=True)
        if max_characters is not None:
            require_range("task.max_characters", max_characters, at_least=1, integer=True)
        check_template(prompt_template)
        self.path = path
        self.config_name = config_name
        self.revision = revision
        self.num_train = num_train
        self.num_validation = num_validation
        self.num_test = num_test
        self.num_demonstrations = num_demonstrations
        self.num_influence_demonstrations = num_influence_demonstrations
        self.max_characters = max_characters
        self.prompt_template = prompt_template

    def prepare(self) -> None:
        """Download a data set from the Hub into its cache; a folder needs no preparation."""
        if not is_folder(self.path):
            # both splits, so that the ranks find them in the cache and none downloads
            for split in ("train", "test"):
                self._load(split)

    def rows(self, split: Split) -> Sequence[Row]:
        """Return the rows of a split; the first call reads both files.

        Raises:
            UserError: the data is missing or malformed, or no training question is left.
        """
        return self._rows[split]

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return label, answer and whether it is right, see `grade_gsm8k`."""
        return grade_gsm8k(prompt, response, example)

    @cached_property
    def _rows(self) -> dict[Split, list[dict[str, Any]]]:
        # too long problems are left out first: a limit must not make the validation split smaller.
        held_out, train = hold_out(self._short("train"), count=self.num_validation + self.num_influence_demonstrations)
        if not train:
            raise UserError(
                f"task.num_validation: {self.num_validation}, with {self.num_influence_demonstrations} demonstrations "
                f"for the filter, leaves no training question of {len(held_out)}; expected fewer"
            )
        # only after the held-out questions are taken: their choice must not depend on num_train
        train = train[: self.num_train]
        return {
            "test": self._prompts(self._short("test")[: self.num_test]),
            "validation": self._prompts(held_out[: self.num_validation]),
            "influence": self._demonstrations(held_out[self.num_validation :]),
            "prompts": self._prompts(train),
            "demonstrations": self._demonstrations(train[: self.num_demonstrations]),
        }

    def _load(self, split: str) -> list[Record]:
        return load_records(self.path, split=split, config_name=self.config_name, revision=self.revision)

    def _short(self, split: str) -> list[Record]:
        """Return the records of a split that are within `max_characters`."""
        records, limit = self._load(split), self.max_characters
        if limit is None:
            return records
        short = [record for record in records if max(len(text) for text in record.values()) <= limit]
        left_out = len(records) - len(short)
        if left_out and is_first_rank():
            logger.warning(
                "task.max_characters: %d leaves out %d of %d problems of %s", limit, left_out, len(records), split
            )
        return short

    def _prompts(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        return [
            {
                # replace and not format: a template may contain other braces
                "prompt": fill_template(self.prompt_template, record["question"]),
                "example": {"question": record["question"], "answer": gsm8k_answer(record["answer"])},
            }
            for record in records
        ]

    def _demonstrations(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        pairs = zip(self._prompts(records), records, strict=True)
        return [{**row, "response": with_canonical_answer(record["answer"])} for row, record in pairs]


def hold_out(records: Sequence[Record], *, count: int) -> tuple[list[Record], list[Record]]:
    """Return the `count` records whose questions have the smallest SHA-256, in that order, and the rest in theirs.

    Args:
        records: a question that comes twice counts once, with its first answer.
        count: at least 0; all records are held out where there are no more.
    """
    # the same question in training and in validation would measure memory
    unique: dict[str, Record] = {}
    for record in records:
        unique.setdefault(record["question"], record)
    # by hash and not by a random draw: the order of the file then changes nothing
    by_hash = sorted(unique, key=lambda question: sha256(question.encode()).digest())
    held_out = by_hash[:count]
    chosen = set(held_out)
    rest = [record for question, record in unique.items() if question not in chosen]
    return [unique[question] for question in held_out], rest


def with_canonical_answer(response: str) -> str:
    """Return a worked answer whose `#### 1,000` reads `#### 1000`; what follows the number is left out."""
    steps, mark, _ = response.rpartition("####")
    return f"{steps}{mark} {gsm8k_answer(response)}"
