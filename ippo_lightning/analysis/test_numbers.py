"""The test of a policy after a repeated update: one number per episode, or per prompt."""

from __future__ import annotations

from typing import Any

import torch

from ippo_lightning.errors import UserError
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.item_evaluation import Prompt, check_judge, evaluated_batch, prompts_of, text_module
from ippo_lightning.run.loaders import loader_of

_BATCH_SIZE = 128
"""Prompts per batch with a data module that has no number of its own."""


class TestNumbers:
    """Tests the current policy of a loop's module, on the same episodes or prompts for all policies of an iteration.

    Environments: another iteration has episodes of other seeds, so that its errors are independent. Prompts are the
    same in all iterations, and their responses are drawn from another random stream.

    Args:
        loop: after `set_up_rounds`.
        count: number of episodes, or of the first prompts of the test split; None for that of the run's own test.

    Raises:
        UserError: fewer than two, more prompts than there are, or a module without a grade or reward.
    """

    __test__ = False  # no test of pytest

    def __init__(self, loop: FabricLoop, count: int | None) -> None:
        self.loop = loop
        self.module: Any = loop.module
        self.is_control = self.module.evaluates == "episodes"
        self._prompts: list[Prompt] = []
        if self.is_control:
            seeds = [int(seed) for batch in loader_of(loop.datamodule, "test") for seed in batch["seeds"]]
            self._first_seed, self.count = seeds[0], count or len(seeds)
        else:
            check_judge(text_module(self.module))
            found = prompts_of(loop, "test")
            self._require_prompts(count, len(found))
            self._prompts = found[:count]
            self.count = len(self._prompts)
        if self.count < 2:
            raise UserError(f"episodes: {self.count} is out of range; expected at least 2")

    @property
    def unit(self) -> str:
        """What is measured, in words."""
        if self.is_control:
            return "test return"
        return "test reward" if self.module.measures_reward else "fraction of right answers"

    @property
    def noun(self) -> str:
        """What there is one number of, in the singular."""
        return "episode" if self.is_control else "prompt"

    @torch.no_grad()
    def of(self, iteration: int) -> list[float]:
        """Return one number per episode or prompt, always in the same order.

        Args:
            iteration: whose episodes, and whose random stream.
        """
        if self.is_control:
            first = self._first_seed + iteration * self.count
            with self.loop.fabric.autocast(), self.module.evaluation_stream(iteration, of_rank=0):
                played: Any = self.module.sample({"seeds": range(first, first + self.count)})
            return [float(value) for value, _ in played]
        return self._of_prompts(iteration)

    def _of_prompts(self, iteration: int) -> list[float]:
        size = int(getattr(self.loop.datamodule, "evaluation_batch_size", _BATCH_SIZE))
        starts = range(0, self.count, size)
        sums, counts = [0.0] * self.count, [0] * self.count
        for number, start in enumerate(starts, start=iteration * len(starts)):
            for item in evaluated_batch(self.loop, self._prompts[start : start + size], number=number, start=start):
                value = item["reward"] if item["reward"] is not None else item["correct"]
                assert value is not None, "check_judge has found a reward or a grader"
                sums[item["prompt_index"]] += float(value)
                counts[item["prompt_index"]] += 1
        return [total / number for total, number in zip(sums, counts, strict=True)]

    @staticmethod
    def _require_prompts(count: int | None, found: int) -> None:
        if count is not None and count > found:
            raise UserError(f"episodes: {count} is out of range; the test split has {found} prompts")
