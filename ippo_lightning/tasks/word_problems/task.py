"""Short word problems as a task: the splits, the demonstrations, and the grade."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.tasks.arithmetic.problems import read_kinds
from ippo_lightning.tasks.grades import Grade, Label
from ippo_lightning.tasks.prompt_template import check_template, fill_template
from ippo_lightning.tasks.protocol import Row, Split
from ippo_lightning.tasks.word_problems.grading import grade_word_problem, write_response
from ippo_lightning.tasks.word_problems.numbers import numbers_of, write_number
from ippo_lightning.tasks.word_problems.questions import Problem, Source, load_problems
from ippo_lightning.tasks.word_problems.unfaithful import unfaithful_response
from ippo_lightning.tasks.word_problems.variants import variants_of


class WordProblemsTask:
    """Questions such as those of MAWPS, answered by one or two steps: `23+5=28`, `28-12=16`, `#### 16`.

    MAWPS is split by a hash of the question into test, validation, influence and training, so the splits depend
    neither on the files' order nor on a seed. A question counts once, however it is spelt. Training questions and
    demonstrations are those whose answer one or two steps reach.

    Args:
        path: folder with `mawps*.jsonl`, and `svamp*.jsonl` or `asdiv*.jsonl` if the test is one of them.
        test: source of the test questions. `svamp` and `asdiv` measure transfer, because no training uses them.
        num_train: training questions; null for all.
        num_validation: validation questions, of MAWPS.
        num_test: questions of MAWPS held out for the test, also while another source is the test.
        num_transfer: test questions if another source is the test; null for all.
        num_demonstrations: demonstrations for SFT, over the first training questions; null for all.
        num_variants: for each of these, as many more demonstrations of the question with other numbers, where its
            numbers admit one way to the answer; see `variants_of`.
        unfaithful_fraction: fraction of the SFT demonstrations that reach the right answer by wrong or missing
            reasoning.
        unfaithful_kinds: weights of `false_positive`, `shortcut` and `nonsense` among them; null for equal weights.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient, all faithful.
        prompt_template: the prompt, with `{question}` where the question goes.
        seed: of which demonstrations are unfaithful, and how.

    Raises:
        UserError: an argument is out of its range; in `rows`, files are missing or malformed, or no training question
            is left.
    """

    def __init__(
        self,
        *,
        path: str = "data/word_problems",
        test: Source = "mawps",
        num_train: int | None = None,
        num_validation: int = 96,
        num_test: int = 192,
        num_transfer: int | None = None,
        num_demonstrations: int | None = None,
        num_variants: int = 0,
        unfaithful_fraction: float = 0.4,
        unfaithful_kinds: dict[str, float] | None = None,
        num_influence_demonstrations: int = 64,
        prompt_template: str = "{question}\n",
        seed: int = 0,
    ) -> None:
        require_choice("task.test", test, ("mawps", "svamp", "asdiv"))
        for name, count in (
            ("num_train", num_train),
            ("num_validation", num_validation),
            ("num_test", num_test),
            ("num_transfer", num_transfer),
            ("num_demonstrations", num_demonstrations),
            ("num_variants", num_variants),
            ("num_influence_demonstrations", num_influence_demonstrations),
        ):
            if count is not None:
                require_range(f"task.{name}", count, at_least=0, integer=True)
        require_range("task.unfaithful_fraction", unfaithful_fraction, at_least=0, at_most=1)
        check_template(prompt_template)
        self.path = path
        self.test = test
        self.num_train = num_train
        self.num_validation = num_validation
        self.num_test = num_test
        self.num_transfer = num_transfer
        self.num_demonstrations = num_demonstrations
        self.num_variants = num_variants
        self.unfaithful_fraction = unfaithful_fraction
        self.unfaithful_kinds = read_kinds(unfaithful_kinds)
        self.num_influence_demonstrations = num_influence_demonstrations
        self.prompt_template = prompt_template
        self.seed = seed

    def rows(self, split: Split) -> Sequence[Row]:
        """Return the rows of a split; the first call reads the files.

        Raises:
            UserError: files are missing or malformed, or no training question is left.
        """
        return self._rows[split]

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return label, answer and whether it is right, see `grade_word_problem`."""
        return grade_word_problem(prompt, response, example)

    @cached_property
    def _rows(self) -> dict[Split, list[dict[str, Any]]]:
        questions = load_problems(self.path, "mawps")
        test, rest = questions[: self.num_test], questions[self.num_test :]
        if self.test != "mawps":
            test = load_problems(self.path, self.test)[: self.num_transfer]
        validation, rest = rest[: self.num_validation], rest[self.num_validation :]
        # a question of the test of transfer must not be learned, should MAWPS contain it
        tested = {problem.key for problem in test}
        solved = [problem for problem in rest if problem.key not in tested and problem.steps() is not None]
        count = self.num_influence_demonstrations
        influence, train = solved[:count], solved[count:][: self.num_train]
        held_out = {problem.key for problem in [*test, *validation, *influence, *questions[: self.num_test]]}
        if not train:
            raise UserError(f"task.num_validation: no training question is left of {len(questions)}; expected fewer")
        return {
            "test": [self._prompt(problem) for problem in test],
            "validation": [self._prompt(problem) for problem in validation],
            "prompts": [self._prompt(problem) for problem in train],
            "influence": self._demonstrations(influence, unfaithful_fraction=0.0),
            "demonstrations": self._demonstrations(
                self._with_variants(train[: self.num_demonstrations], held_out=held_out),
                unfaithful_fraction=self.unfaithful_fraction,
            ),
        }

    def _prompt(self, problem: Problem) -> dict[str, Any]:
        example = {"question": problem.question, "answer": write_number(problem.answer)}
        return {"prompt": fill_template(self.prompt_template, problem.question), "example": example}

    def _with_variants(self, problems: Sequence[Problem], *, held_out: Set[str]) -> list[Problem]:
        """Return the problems, each followed by its variants; no question twice, and none that is held out."""
        generator = random.Random(f"{self.seed} variants")
        # with other numbers, a training question may become another one, also one that is held out
        taken = set(held_out) | {problem.key for problem in problems}
        found = []
        for problem in problems:
            found.append(problem)
            for variant in variants_of(problem, count=self.num_variants, generator=generator):
                if variant.key not in taken:
                    taken.add(variant.key)
                    found.append(variant)
        return found

    def _demonstrations(self, problems: Sequence[Problem], *, unfaithful_fraction: float) -> list[dict[str, Any]]:
        """Return one demonstration per problem; the number of unfaithful ones is exact, up to rounding."""
        generator = random.Random(f"{self.seed} demonstrations")
        unfaithful = set(generator.sample(range(len(problems)), round(unfaithful_fraction * len(problems))))
        kinds, weights = list(self.unfaithful_kinds), list(self.unfaithful_kinds.values())
        rows = []
        for index, problem in enumerate(problems):
            steps = problem.steps() or ()
            label, response = Label.FAITHFUL, write_response(steps, problem.answer)
            if index in unfaithful:
                label = generator.choices(kinds, weights)[0]
                response = unfaithful_response(
                    steps,
                    kind=label,
                    numbers=numbers_of(problem.question),
                    answer=problem.answer,
                    generator=generator,
                )
            row = self._prompt(problem)
            rows.append({**row, "response": response, "example": {**row["example"], "label": label.value}})
        return rows
