"""Grade-school word problems as a LightningDataModule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_only

from ippo_lightning.data.text_module import Splits, TextDataModule, check_count, check_counts
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import gsm8k_answer
from ippo_lightning.tasks.gsm8k.question_files import Record, is_folder, load_records

logger = logging.getLogger(__name__)

_PLACEHOLDER = "{question}"


class GSM8KDataModule(TextDataModule):
    """GSM8K, or any questions with worked answers that end in `#### number`.

    Validation questions and the filter's demonstrations are held out of the training file by a hash of the question,
    so they are the same for every seed and every order of the file. A question that comes twice counts once.

    Args:
        path: a folder with `train.jsonl` and `test.jsonl` (an object with `question` and `answer` a line), or the id of
            a data set on the Hub.
        config_name: of the data set on the Hub.
        revision: branch, tag or commit of the data set on the Hub; null for its newest.
        stage: `sft` trains on demonstrations, `rl` on prompts.
        num_train: training questions, the first ones of the file; null for all.
        num_validation: validation questions.
        num_test: test questions, the first ones of the file; null for all.
        num_demonstrations: demonstrations for SFT, over the first training questions; null for all of them.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        max_characters: problems with a longer question or worked answer are left out of every split; null for none.
        prompt_template: the prompt, with `{question}` where the question goes.
        batch_size: training prompts or demonstrations a batch, on each rank.
        evaluation_batch_size: prompts a batch for evaluation, demonstrations a batch for the filter.
        num_workers: processes that load.
        seed: of the training order.

    Raises:
        UserError: an argument out of its range; in `prepare_data` and `setup`, data that is not there or malformed, or
            fewer training questions than are held out.
    """

    def __init__(
        self,
        *,
        path: str = "openai/gsm8k",
        config_name: str | None = "main",
        revision: str | None = None,
        stage: Literal["sft", "rl"] = "rl",
        num_train: int | None = None,
        num_validation: int = 128,
        num_test: int | None = None,
        num_demonstrations: int | None = None,
        num_influence_demonstrations: int = 64,
        max_characters: int | None = None,
        prompt_template: str = "{question}\n",
        batch_size: int = 64,
        evaluation_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            stage=stage,
            batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        check_counts(
            {
                "num_train": num_train,
                "num_validation": num_validation,
                "num_test": num_test,
                "num_demonstrations": num_demonstrations,
                "num_influence_demonstrations": num_influence_demonstrations,
            }
        )
        check_count("max_characters", max_characters, at_least=1)
        if _PLACEHOLDER not in prompt_template:
            raise UserError(f"data.prompt_template: {prompt_template!r} has no {_PLACEHOLDER}; expected it once")
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

    def prepare_data(self) -> None:
        """Fetch a data set from the Hub into its cache, once for all ranks of a machine; a folder needs nothing."""
        if not is_folder(self.path):
            for split in ("train", "test"):
                self._load(split)

    def make_splits(self) -> Splits:
        """Read both files and hold out the validation questions and the filter's demonstrations."""
        held_out, train = hold_out(self._short("train"), count=self.num_validation + self.num_influence_demonstrations)
        if not train:
            raise UserError(
                f"data.num_validation: {self.num_validation}, with {self.num_influence_demonstrations} demonstrations "
                f"for the filter, leaves no training question of {len(held_out)}; expected fewer"
            )
        train = train[: self.num_train]
        return Splits(
            test=self._rows(self._short("test")[: self.num_test]),
            validation=self._rows(held_out[: self.num_validation]),
            influence=self._rows(held_out[self.num_validation :], demonstrations=True),
            prompts=self._rows(train),
            demonstrations=self._rows(train[: self.num_demonstrations], demonstrations=True),
        )

    def _load(self, split: str) -> list[Record]:
        return load_records(self.path, split=split, config_name=self.config_name, revision=self.revision)

    def _short(self, split: str) -> list[Record]:
        """Return the records of a split that are within `max_characters`."""
        records, limit = self._load(split), self.max_characters
        if limit is None:
            return records
        short = [record for record in records if max(len(text) for text in record.values()) <= limit]
        _log_left_out(limit=limit, left_out=len(records) - len(short), total=len(records), split=split)
        return short

    def _rows(self, records: Sequence[Record], *, demonstrations: bool = False) -> list[dict[str, Any]]:
        rows = []
        for record in records:
            prompt = self.prompt_template.replace(_PLACEHOLDER, record["question"])
            answer = gsm8k_answer(record["answer"])
            row: dict[str, Any] = {"prompt": prompt, "example": {"question": record["question"], "answer": answer}}
            if demonstrations:
                row["response"] = with_canonical_answer(record["answer"])
            rows.append(row)
        return rows


def hold_out(records: Sequence[Record], *, count: int) -> tuple[list[Record], list[Record]]:
    """Return the `count` records whose questions have the smallest SHA-256, in that order, and the rest in theirs.

    Args:
        records: a question that comes twice counts once, with its first answer.
        count: at least 0; all records are held out where there are no more.
    """
    unique: dict[str, Record] = {}
    for record in records:
        unique.setdefault(record["question"], record)
    by_hash = sorted(unique, key=lambda question: sha256(question.encode()).digest())
    held_out = by_hash[:count]
    chosen = set(held_out)
    rest = [record for question, record in unique.items() if question not in chosen]
    return [unique[question] for question in held_out], rest


@rank_zero_only
def _log_left_out(*, limit: int, left_out: int, total: int, split: str) -> None:
    if left_out:
        logger.warning("data.max_characters: %d leaves out %d of %d problems of %s", limit, left_out, total, split)


def with_canonical_answer(response: str) -> str:
    """Return a worked answer whose `#### 1,000` reads `#### 1000`; what follows the number is left out."""
    steps, mark, _ = response.rpartition("####")
    return f"{steps}{mark} {gsm8k_answer(response)}"
