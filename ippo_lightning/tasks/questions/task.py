"""Questions of any file, data set or mixture of them as a task: the splits, the prompts and the grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from itertools import islice
from typing import Any

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.tasks.graders import as_grade
from ippo_lightning.tasks.grades import Grade
from ippo_lightning.tasks.prompt_template import check_template, fill_template
from ippo_lightning.tasks.protocol import Row, Split
from ippo_lightning.tasks.questions.answer_kinds import ANSWER_KINDS
from ippo_lightning.tasks.questions.reading import log, read_sources
from ippo_lightning.tasks.questions.sources import Source
from ippo_lightning.tasks.questions.splits import Question, fewest, hold_out, weighted, without
from ippo_lightning.tasks.questions.tables import is_download, table_rows

NUM_TEST = 128
"""Test questions that are held out of `train` for `num_test: null`."""
_CHECKED = 100
"""Demonstrations whose answers are looked for in their responses."""


class QuestionTask:
    """Questions of your own data, or of public data sets, from a YAML alone.

    A question counts once, whatever its case and spaces are. What a source of its own does not give is held out of
    `train` by a hash of the question: test, validation, and the filter's demonstrations. So the splits depend neither
    on the order of the rows nor on a seed, and no question is in two of them: what is in the test is in no other split,
    and what is held out is not trained on.

    Args:
        train: questions to train on, one source or several; never null.
        test: test questions; null to hold out `num_test` of `train`.
        validation: validation questions; null to hold out `num_validation` of `train`.
        demonstrations: demonstrations for SFT and for the filter; null for the rows of `train` with a response.
        num_train: training questions; null for all.
        num_validation: validation questions.
        num_test: test questions; null for all of `test`, or 128 of `train`.
        num_demonstrations: demonstrations for SFT; null for all.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        sft_fraction: fraction of the training questions that are for SFT only, and no prompts; null to use the same
            questions for both.
        max_characters: rows with a longer question or response are left out; null for no limit.
        prompt_template: the prompt, with `{question}` where the question goes. A conversation is not changed by it.

    Raises:
        UserError: an argument is out of its range; in `prepare` and `rows`, data are missing, a row does not fit, or
            no training question is left.
    """

    def __init__(
        self,
        *,
        train: Source | list[Source] | None = None,
        test: Source | list[Source] | None = None,
        validation: Source | list[Source] | None = None,
        demonstrations: Source | list[Source] | None = None,
        num_train: int | None = None,
        num_validation: int = 128,
        num_test: int | None = None,
        num_demonstrations: int | None = None,
        num_influence_demonstrations: int = 64,
        sft_fraction: float | None = None,
        max_characters: int | None = None,
        prompt_template: str = "{question}\n",
    ) -> None:
        if not train:
            raise UserError("task.train: null; expected a source: path and columns, or path and layout")
        for name, count in (
            ("num_train", num_train),
            ("num_validation", num_validation),
            ("num_test", num_test),
            ("num_demonstrations", num_demonstrations),
            ("num_influence_demonstrations", num_influence_demonstrations),
        ):
            if count is not None:
                require_range(f"task.{name}", count, at_least=0, integer=True)
        if max_characters is not None:
            require_range("task.max_characters", max_characters, at_least=1, integer=True)
        if sft_fraction is not None:
            require_range("task.sft_fraction", sft_fraction, at_least=0, at_most=1)
            if demonstrations is not None:
                raise UserError("task.sft_fraction: given, and task.demonstrations has its own; leave one of them out")
        check_template(prompt_template)
        given = {"train": train, "test": test, "validation": validation, "demonstrations": demonstrations}
        self.sources = {name: as_list(value) for name, value in given.items() if value is not None}
        self.num_train = num_train
        self.num_validation = num_validation
        self.num_test = num_test
        self.num_demonstrations = num_demonstrations
        self.num_influence_demonstrations = num_influence_demonstrations
        self.sft_fraction = sft_fraction
        self.max_characters = max_characters
        self.prompt_template = prompt_template

    @staticmethod
    def used_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that null stands for and that are known before the data are read.

        Args:
            arguments: by name; those that are left out are null.
        """
        return {"num_test": NUM_TEST} if arguments.get("test") is None else {}

    @property
    def is_local(self) -> bool:
        """Whether all questions are in files on this machine."""
        sources = [(f"task.{name}", source) for name, given in self.sources.items() for source in given]
        return not any(source.streaming or is_download(source, field=field) for field, source in sources)

    def prepare(self) -> None:
        """Download data sets of the Hub into its cache; files need no preparation."""
        for name, sources in self.sources.items():
            for source in sources:
                if is_download(source, field=f"task.{name}"):
                    # the first row is enough: the library downloads the whole data set for it
                    list(islice(table_rows(source, field=f"task.{name}"), 1))

    def rows(self, split: Split) -> Sequence[Row]:
        """Return the rows of a split; the first call reads the data.

        Raises:
            UserError: data are missing, a row does not fit, or no training question is left.
        """
        return self._rows[split]

    @property
    def can_grade(self) -> bool:
        """Whether every prompt has a right answer; without, a run needs a reward, and evaluation gives its mean."""
        return all("answer_kind" in row["example"] for split in _PROMPTS for row in self._rows[split])

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return whether the answer of a response is right, see `ippo_lightning.tasks.questions.answer_kinds`.

        Args:
            prompt: what the policy read.
            response: what the policy wrote.
            example: `answer` and `answer_kind`; a demonstration without an answer has neither, and nothing is right.
        """
        kind = example.get("answer_kind")
        return Grade(False) if kind is None else as_grade(ANSWER_KINDS[kind].grade(prompt, response, example))

    @cached_property
    def _rows(self) -> dict[Split, list[dict[str, Any]]]:
        read = {
            name: read_sources(sources, field=f"task.{name}", max_characters=self.max_characters)
            for name, sources in self.sources.items()
        }
        test, validation, influence, train, demonstrations = self._split(read)
        self._check_answers(demonstrations)
        return {
            "test": [self._row(question) for question in test],
            "validation": [self._row(question) for question in validation],
            "influence": [self._row(question, with_response=True) for question in influence],
            "prompts": [self._row(question) for question in weighted(train)],
            "demonstrations": [self._row(question, with_response=True) for question in weighted(demonstrations)],
        }

    def _split(self, read: Mapping[str, list[Question]]) -> tuple[list[Question], ...]:
        """Return test, validation, the filter's demonstrations, training questions and demonstrations."""
        rest = read["train"]
        total = len(rest)
        if "test" in read:
            test = fewest(read["test"], self.num_test)
            taken = _keys(read["test"])  # all of them: num_test must not change what is trained on
        else:
            test, rest = hold_out(rest, NUM_TEST if self.num_test is None else self.num_test)
            taken = _keys(test)
        rest = self._apart(rest, taken, "train", "test")
        if "validation" in read:
            validation = hold_out(self._apart(read["validation"], taken, "validation", "test"), self.num_validation)[0]
            taken |= _keys(validation)
            rest = self._apart(rest, taken, "train", "validation")
        else:
            validation, rest = hold_out(rest, self.num_validation)
            taken |= _keys(validation)
        pool = rest
        if "demonstrations" in read:
            pool = self._apart(read["demonstrations"], taken, "demonstrations", "test or validation")
        pool = [question for question in pool if question.cells.response is not None]
        influence, pool = hold_out(pool, self.num_influence_demonstrations)
        rest = without(rest, _keys(influence))
        if not rest:
            raise self._too_few(total, own={"test", "validation"} - read.keys())
        return test, validation, influence, *self._training(rest, pool, own="demonstrations" in read)

    def _too_few(self, total: int, *, own: Set[str]) -> UserError:
        """Return the error of held-out parts that leave nothing to train on.

        Args:
            total: questions of `train`.
            own: the parts that have no source of their own.
        """
        wanted = {"num_test": NUM_TEST if self.num_test is None else self.num_test}
        wanted = wanted if "test" in own else {}
        if "validation" in own:
            wanted["num_validation"] = self.num_validation
        wanted["num_influence_demonstrations"] = self.num_influence_demonstrations
        asked = ", ".join(f"{name}: {count}" for name, count in wanted.items())
        path = ", ".join(source.path for source in self.sources["train"])
        return UserError(
            f"task.{asked} hold out {sum(wanted.values())} questions, and train has {total} in {path}, which leaves no "
            f"training question; expected fewer, for example {max(total // 10, 1)} each"
        )

    def _training(
        self, rest: list[Question], pool: list[Question], *, own: bool
    ) -> tuple[list[Question], list[Question]]:
        """Return the questions for PPO and those for SFT."""
        for_sft: list[Question] = []
        if self.sft_fraction is not None:
            for_sft, rest = hold_out(rest, round(self.sft_fraction * len(rest)))
        train = fewest(rest, self.num_train)
        if not own:  # SFT is on the questions of PPO, or on those that are kept apart for it
            wanted = _keys(train if self.sft_fraction is None else for_sft)
            pool = [question for question in pool if question.key in wanted]
        return train, fewest(pool, self.num_demonstrations)

    def _apart(self, questions: list[Question], taken: set[str], name: str, other: str) -> list[Question]:
        left = without(questions, taken)
        if len(left) < len(questions):
            log(f"task.{name}: {len(questions) - len(left)} of {len(questions)} questions are in {other}; left out")
        return left

    def _row(self, question: Question, *, with_response: bool = False) -> dict[str, Any]:
        cells = question.cells
        example = {**cells.kept, "question": cells.question}
        if cells.answer is not None and question.answer_kind is not None:
            example |= {"answer": cells.answer, "answer_kind": question.answer_kind}
        row: dict[str, Any] = {"example": example, "prompt": cells.question}
        if cells.messages:
            row["messages"] = list(cells.messages)
        else:
            row["prompt"] = fill_template(self.prompt_template, cells.question)
        return {**row, "response": cells.response} if with_response else row

    def _check_answers(self, demonstrations: Sequence[Question]) -> None:
        """Log if demonstrations teach a form in which the grader does not find the answer."""
        checked = [question for question in demonstrations if question.answer_kind and question.cells.answer][:_CHECKED]
        wrong = []
        for question in checked:
            row = self._row(question, with_response=True)
            if not self.grade(row["prompt"], row["response"], row["example"]).correct:
                wrong.append(question)
        if wrong:
            kind, place = wrong[0].answer_kind, wrong[0].place
            log(
                f"{place}: answer_kind: {kind} does not find the answer in the response, as in {len(wrong)} of "
                f"{len(checked)} demonstrations; the grader counts such responses as wrong"
            )


_PROMPTS: tuple[Split, ...] = ("prompts", "validation", "test")


def as_list(given: Source | list[Source]) -> list[Source]:
    """Return one source or several as a list."""
    return list(given) if isinstance(given, list) else [given]


def _keys(questions: Sequence[Question]) -> set[str]:
    return {question.key for question in questions}
