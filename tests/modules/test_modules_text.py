"""Evaluation without right answers gives the mean reward; with neither grader nor reward it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from training_parts import length_reward, tiny_data, tiny_loop, tiny_module, tiny_policy

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.metrics import ReasoningMetrics
from ippo_lightning.modules import SFTModule
from ippo_lightning.rewards import CombinedReward, LengthPenalty, MissingEOSPenalty, OverlongPenalty


class NoAnswers:
    """A task with prompts only."""

    can_grade = False

    def rows(self, split: str) -> list[Any]:
        return list(tiny_data().task.rows(split))

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> bool:
        raise AssertionError("the task knows no right answers")


def test_prompts_without_answers_are_evaluated_by_their_mean_reward(tmp_path: Path) -> None:
    module = tiny_module(grader=None)
    seen: list[float] = []

    def reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
        given = length_reward(prompts, responses, examples)
        seen.extend(given)
        return given

    module.reward = reward
    loop = tiny_loop(
        tmp_path, module, data=TextDataModule(NoAnswers(), batch_size=8), max_iterations=1, test_at_end=True
    )
    metrics = loop.fit()
    tested = seen[-4 * module.evaluation.num_responses :]  # of the four prompts of the test, the last that ran
    assert metrics["reward"] == pytest.approx(sum(tested) / len(tested), rel=1e-6)
    assert set(metrics) == {"reward", "response_tokens_mean", "truncated_fraction"}


def test_a_task_with_answers_is_graded_whatever_the_reward_is() -> None:
    module, data = tiny_module(grader=None), tiny_data()
    data.setup()
    module.use_data(data)
    assert isinstance(module.evaluation_metrics, ReasoningMetrics)
    assert module.grader is not None


def test_a_run_with_neither_answers_nor_a_reward_is_refused() -> None:
    data = TextDataModule(NoAnswers(), batch_size=8)
    data.setup()
    with pytest.raises(UserError, match=r"^model\.reward: null, and there is no grader"):
        tiny_module(grader=None, reward=None).use_data(data)
    supervised = SFTModule(policy=tiny_policy(value="none", reference="none"))
    supervised.use_data(data)
    with pytest.raises(UserError, match=r"evaluation needs a grader or a reward"):
        supervised.check_evaluation()
    with pytest.raises(UserError, match=r"evaluation needs a grader or a reward"):
        supervised.evaluate_batch(next(iter(data.val_dataloader())), 0)


@pytest.mark.parametrize(
    "reward",
    [LengthPenalty(8), OverlongPenalty(8, 4), MissingEOSPenalty(), CombinedReward({"cut": MissingEOSPenalty()})],
    ids=lambda reward: type(reward).__name__,
)
def test_a_reward_that_counts_tokens_of_a_rollout_is_no_evaluation(reward: Any, tmp_path: Path) -> None:
    data = TextDataModule(NoAnswers(), batch_size=8)
    module = tiny_module(grader=None, reward=reward)
    with pytest.raises(UserError, match="and the reward counts tokens of a rollout; give one, or set"):
        tiny_loop(tmp_path / "refused", module, data=data, max_iterations=1, test_at_end=True).fit()
    assert not (tmp_path / "refused" / "history.jsonl").exists()
    module = tiny_module(grader=None, reward=reward)
    tiny_loop(tmp_path / "trains", module, data=data, max_iterations=1).fit()
    assert module.iteration == 1
