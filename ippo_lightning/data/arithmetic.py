"""Arithmetic chains as a LightningDataModule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ippo_lightning.data.loaders import Row, collate_rows, evaluation_loader, training_loader
from ippo_lightning.data.problems import ProblemSpace, demonstration_rows, prompt_row
from ippo_lightning.errors import UserError


class ArithmeticDataModule(LightningDataModule):
    """Problems such as `7+12-5?`, demonstrations of which a share is unfaithful, and clean ones for the filter.

    Problems of training, validation, test and the filter's demonstrations have none in common. Everything follows
    from `seed`.

    Args:
        stage: `sft` trains on demonstrations, `rl` on prompts.
        min_terms: fewest terms of a problem.
        max_terms: most terms; their number is uniform as long as there are enough different problems.
        min_number: smallest term.
        max_number: largest term.
        operators: any of `+`, `-`, `*`, worked from left to right.
        num_train: training problems.
        num_validation: validation problems.
        num_test: test problems.
        num_demonstrations: demonstrations for SFT, over the first training problems; at most `num_train`.
        unfaithful_share: share of the SFT demonstrations that reach the right answer by wrong or missing reasoning.
        unfaithful_kinds: weights of `false_positive`, `shortcut` and `nonsense` among them; null for equal ones.
        num_influence_demonstrations: demonstrations behind the filter's validation gradient.
        influence_noise: share of those that are unfaithful all the same.
        batch_size: training prompts or demonstrations a batch, on each rank.
        evaluation_batch_size: prompts a batch for evaluation, demonstrations a batch for the filter.
        num_workers: processes that load.
        seed: of problems, demonstrations and order.

    Raises:
        UserError: a number out of its range; in `setup`, more problems asked for than exist.
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
        unfaithful_share: float = 0.4,
        unfaithful_kinds: dict[str, float] | None = None,
        num_influence_demonstrations: int = 64,
        influence_noise: float = 0.0,
        batch_size: int = 64,
        evaluation_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "num_train": num_train,
            "num_validation": num_validation,
            "num_test": num_test,
            "num_demonstrations": num_demonstrations,
            "num_influence_demonstrations": num_influence_demonstrations,
        }
        for name, value in {**sizes, "num_workers": num_workers}.items():
            if value < 0:
                raise UserError(f"data.{name}: {value} is out of range; expected an integer >= 0")
        for name, value in (("batch_size", batch_size), ("evaluation_batch_size", evaluation_batch_size)):
            if value < 1:
                raise UserError(f"data.{name}: {value} is out of range; expected an integer >= 1")
        if stage == "sft" and num_demonstrations > num_train:
            raise UserError(
                f"data.num_demonstrations: {num_demonstrations} is more than num_train = {num_train}; expected at most that"
            )
        self.space = ProblemSpace(
            min_terms=min_terms,
            max_terms=max_terms,
            min_number=min_number,
            max_number=max_number,
            operators=operators,
        )
        self.stage = stage
        self.sizes = sizes
        self.unfaithful_share = unfaithful_share
        self.unfaithful_kinds = unfaithful_kinds
        self.influence_noise = influence_noise
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.rows: dict[str, Sequence[Row]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw all problems and demonstrations; the second call changes nothing.

        Args:
            stage: Lightning's; all splits are made whatever it says.
        """
        if self.rows:
            return
        generator = random.Random(self.seed)
        splits = ("num_test", "num_validation", "num_influence_demonstrations", "num_train")
        problems = self.space.draw(sum(self.sizes[name] for name in splits), generator)
        drawn, start = {}, 0
        for name in splits:
            drawn[name] = problems[start : start + self.sizes[name]]
            start += self.sizes[name]

        def demonstrations(chosen: Sequence[Any], share: float) -> list[dict[str, Any]]:
            return demonstration_rows(
                chosen, unfaithful_share=share, unfaithful_kinds=self.unfaithful_kinds, generator=generator
            )

        self.rows = {
            "test": [prompt_row(problem) for problem in drawn["num_test"]],
            "validation": [prompt_row(problem) for problem in drawn["num_validation"]],
            "influence": demonstrations(drawn["num_influence_demonstrations"], self.influence_noise),
            "prompts": [prompt_row(problem) for problem in drawn["num_train"]],
            "demonstrations": demonstrations(
                drawn["num_train"][: self.sizes["num_demonstrations"]], self.unfaithful_share
            ),
        }

    def train_dataloader(self) -> DataLoader[Row]:
        """Return demonstrations for SFT, prompts for PPO, in another order each epoch."""
        rows = self.rows["demonstrations" if self.stage == "sft" else "prompts"]
        return training_loader(rows, batch_size=self.batch_size, seed=self.seed, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Row]:
        """Return the validation prompts."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Row]:
        """Return the test prompts."""
        return self._evaluation_loader("test")

    def influence_dataloader(self) -> list[dict[str, list[Any]]]:
        """Return batches of the demonstrations behind the validation gradient, all of them, on every rank."""
        rows = self.rows["influence"]
        size = self.evaluation_batch_size
        return [collate_rows(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _evaluation_loader(self, split: str) -> DataLoader[Row]:
        return evaluation_loader(self.rows[split], batch_size=self.evaluation_batch_size, num_workers=self.num_workers)
