"""Arithmetic chains as a LightningDataModule."""

from __future__ import annotations

import random
from typing import Literal

from ippo_lightning.data.text_module import Splits, TextDataModule, check_counts, check_fraction
from ippo_lightning.errors import UserError
from ippo_lightning.tasks.arithmetic.problems import ProblemSpace, demonstration_rows, prompt_row, read_kinds


class ArithmeticDataModule(TextDataModule):
    """Problems such as `7+12-5?`, demonstrations of which a fraction is unfaithful, and clean ones for the filter.

    Problems of training, validation, test and the filter's demonstrations have none in common. Everything follows
    from `seed`: the same numbers give the same problems whatever `stage`, the shares and the batch sizes are.
    Give SFT and RL the same numbers: with others the problems are drawn anew, and one may test what the other trained.

    Args:
        stage: `sft` trains on demonstrations, `rl` on prompts.
        min_terms: fewest terms of a problem.
        max_terms: most terms; their number is uniform, but for short problems that run out.
        min_number: smallest term.
        max_number: largest term.
        operators: any of `+`, `-`, `*`, worked from left to right.
        num_train: training problems.
        num_validation: validation problems.
        num_test: test problems.
        num_demonstrations: demonstrations for SFT, over the first training problems; at most `num_train`.
        unfaithful_fraction: fraction of the SFT demonstrations that reach the right answer by wrong or missing
            reasoning.
        unfaithful_kinds: weights of `false_positive`, `shortcut` and `nonsense` among them; null for equal ones.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        influence_noise: fraction of those that are unfaithful all the same.
        batch_size: training prompts or demonstrations a batch, on each rank.
        evaluation_batch_size: prompts a batch for evaluation, demonstrations a batch for the filter.
        num_workers: processes that load.
        seed: of problems, demonstrations and order.

    Raises:
        UserError: an argument out of its range; in `setup`, more problems asked for than exist.
    """

    def __init__(
        self,
        *,
        stage: Literal["sft", "rl"] = "rl",
        min_terms: int = 2,
        max_terms: int = 4,
        min_number: int = 1,
        max_number: int = 20,
        operators: str = "+-",
        num_train: int = 4096,
        num_validation: int = 256,
        num_test: int = 512,
        num_demonstrations: int = 4096,
        unfaithful_fraction: float = 0.4,
        unfaithful_kinds: dict[str, float] | None = None,
        num_influence_demonstrations: int = 64,
        influence_noise: float = 0.0,
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
        # in the order in which they are drawn: the test problems do not change with the size of another split
        self.sizes = {
            "num_test": num_test,
            "num_validation": num_validation,
            "num_influence_demonstrations": num_influence_demonstrations,
            "num_train": num_train,
        }
        check_counts({**self.sizes, "num_demonstrations": num_demonstrations})
        check_fraction("unfaithful_fraction", unfaithful_fraction)
        check_fraction("influence_noise", influence_noise)
        if stage == "sft" and num_demonstrations > num_train:
            raise UserError(
                f"data.num_demonstrations: {num_demonstrations} is more than num_train = {num_train}; "
                "expected at most that"
            )
        self.num_demonstrations = num_demonstrations
        self.space = ProblemSpace(
            min_terms=min_terms,
            max_terms=max_terms,
            min_number=min_number,
            max_number=max_number,
            operators=operators,
        )
        self.unfaithful_fraction = unfaithful_fraction
        self.unfaithful_kinds = read_kinds(unfaithful_kinds)
        self.influence_noise = influence_noise

    def make_splits(self) -> Splits:
        """Draw all problems and write the demonstrations.

        Raises:
            UserError: more problems are asked for than exist.
        """
        generator = random.Random(self.seed)
        chosen = self.space.draw(sum(self.sizes.values()), generator)
        # short problems run out while drawing; shuffled, no split gets more of them than another
        generator.shuffle(chosen)
        problems = iter(chosen)
        drawn = {name: [next(problems) for _ in range(size)] for name, size in self.sizes.items()}
        return Splits(
            test=[prompt_row(problem) for problem in drawn["num_test"]],
            validation=[prompt_row(problem) for problem in drawn["num_validation"]],
            prompts=[prompt_row(problem) for problem in drawn["num_train"]],
            demonstrations=demonstration_rows(
                drawn["num_train"][: self.num_demonstrations],
                unfaithful_fraction=self.unfaithful_fraction,
                unfaithful_kinds=self.unfaithful_kinds,
                generator=random.Random(f"{self.seed} demonstrations"),
            ),
            influence=demonstration_rows(
                drawn["num_influence_demonstrations"],
                unfaithful_fraction=self.influence_noise,
                unfaithful_kinds=self.unfaithful_kinds,
                generator=random.Random(f"{self.seed} influence"),
            ),
        )
