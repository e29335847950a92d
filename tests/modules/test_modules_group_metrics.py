"""The log shows how many groups teach nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from lightning import Callback
from training_parts import tiny_loop, tiny_module

NAME = "rollout/zero_variance_fraction"


def by_first_prompt(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """Different rewards for the responses to the first prompt, equal ones for the others."""
    return [float(row) if prompt == prompts[0] else 1.0 for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("reward", "fraction"), [(by_first_prompt, 7 / 8), (lambda *texts: [0.0] * len(texts[0]), 1.0)]
)
def test_groups_of_equal_rewards_are_in_the_log(reward: Any, fraction: float, tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path / "run", critic_free_module("grpo", reward=reward), max_iterations=1)
    loop.fit()
    assert loop.folder.read_rows("history.jsonl")[0][NAME] == pytest.approx(fraction)


def test_an_estimator_without_groups_logs_none(tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path / "run", tiny_module(), max_iterations=1)
    loop.fit()
    assert NAME not in loop.folder.read_rows("history.jsonl")[0]


def test_without_any_group_there_is_no_fraction(tmp_path: Path) -> None:
    class OneEach(Callback):
        def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
            plan.allocate(torch.ones_like(plan.counts), reason="one each")

    loop = tiny_loop(tmp_path / "run", critic_free_module("grpo"), max_iterations=1, callbacks=[OneEach()])
    loop.fit()
    assert NAME not in loop.folder.read_rows("history.jsonl")[0]
