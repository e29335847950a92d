"""Evaluation without right answers gives the mean reward; with neither grader nor reward it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import length_reward, tiny_data, tiny_loop, tiny_module, tiny_policy

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.metrics import ReasoningMetrics
from ippo_lightning.modules import SFTModule
from ippo_lightning.rewards import CombinedReward, LengthPenalty, MissingEOSPenalty, OverlongPenalty, TaskGrade
from ippo_lightning.rewards.grade import GradeReward
from ippo_lightning.tasks import grade_arithmetic


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


class Recorded:
    """Two parts and a random number, which an evaluation must not take from training; async; it keeps what it gave."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    async def __call__(self, prompts: Any, responses: Any, examples: Any) -> dict[str, list[float]]:
        torch.rand(3)
        rows = [
            (float(len(response)), -float(len(prompt))) for prompt, response in zip(prompts, responses, strict=True)
        ]
        self.rows += rows
        return {"long": [row[0] for row in rows], "prompt": [row[1] for row in rows]}


def test_the_reward_that_is_trained_on_is_measured_beside_the_grades(tmp_path: Path) -> None:
    found = {}
    for name, measured in (("measured", True), ("left_out", False)):
        reward = Recorded()
        reward.in_evaluation = measured  # type: ignore[attr-defined]
        loop = tiny_loop(tmp_path / name, tiny_module(reward=reward), evaluate_first=True, test_at_end=True)
        found[name] = loop.fit()
        weights = torch.cat([parameter.detach().flatten() for parameter in loop.module.parameters()])
        found[f"{name} weights"] = weights
        if measured:  # the last that it has given, for two responses to each of four prompts
            means = [sum(column) / 8 for column in zip(*reward.rows[-8:], strict=True)]
    rewards = {name: value for name, value in found["measured"].items() if name.startswith("reward")}
    assert rewards == pytest.approx(
        {"reward": sum(means), "reward/long": means[0], "reward/prompt": means[1]}, rel=1e-6
    )
    rest = {name: value for name, value in found["measured"].items() if name not in rewards}
    assert rest == pytest.approx(found["left_out"], nan_ok=True, abs=0)
    assert torch.equal(found["measured weights"], found["left_out weights"])


class CountsRows:
    """What it is called with, and a part that not each call returns."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, prompts: Any, responses: Any, examples: Any) -> dict[str, list[float]]:
        self.calls.append(len(prompts))
        parts = {"long": [float(len(response)) for response in responses]}
        return {**parts, **({"first": [1.0] * len(prompts)} if len(self.calls) == 1 else {})}


@pytest.mark.parametrize(("batch_size", "calls"), [(1, [2, 2, 2, 2]), (3, [6, 2]), (8, [8])])
def test_an_evaluation_calls_the_reward_with_no_more_rows_than_training(batch_size: int, calls: list[int]) -> None:
    reward = CountsRows()
    module, data = tiny_module(reward=reward), tiny_data(batch_size=batch_size)
    data.setup()
    module.use_data(data)
    batch = next(iter(data.val_dataloader()))
    sampled = module.sample(batch)
    found = module.reward_responses(batch, sampled)
    assert reward.calls == calls
    assert found["reward/long"].tolist() == [float(len(text)) for group in sampled.texts for text in group]
    assert found["reward/first"].isfinite().tolist() == [row < calls[0] for row in range(8)]
    assert found["reward"].isfinite().all()


@pytest.mark.parametrize("graded", [True, False])
def test_a_reward_that_fails_in_an_evaluation_names_it_and_the_way_out(graded: bool) -> None:
    def fails(prompts: Any, responses: Any, examples: Any) -> list[float]:
        raise RuntimeError("no server")

    module = tiny_module(reward=fails, **({} if graded else {"grader": None}))
    batch = {"prompts": ["1+1="], "examples": [{"answer": "2"}]}
    with pytest.raises(
        UserError, match=r"fails raised RuntimeError: no server .*\(while an evaluation measured"
    ) as caught:
        module.evaluate_batch(batch, 0)
    assert ("`in_evaluation = False`" in str(caught.value)) == graded


class PlusMinus(TaskGrade):
    """1 and -1, which are not the exact match."""

    def __call__(self, *texts: Any, grader: Any = None) -> list[float]:
        return [2 * value - 1 for value in super().__call__(*texts, grader=grader)]


class HalfGrade(GradeReward):
    def __call__(self, *texts: Any) -> list[float]:
        return [value / 2 for value in super().__call__(*texts)]


class Doubled(CombinedReward):
    def __call__(self, *texts: Any, grader: Any = None) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {name: 2 * values for name, values in super().__call__(*texts, grader=grader).items()}


def left_out(prompts: Any, responses: Any, examples: Any) -> list[float]:
    return length_reward(prompts, responses, examples)


left_out.in_evaluation = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reward", "is_measured"),
    [
        (None, False),
        (GradeReward(grade_arithmetic), False),
        (TaskGrade(), False),
        (CombinedReward({"right": TaskGrade()}), False),
        (CombinedReward({"right": TaskGrade()}, {"right": 2.0}), True),
        (CombinedReward({"right": TaskGrade(), "long": length_reward}), True),
        (GradeReward(lambda prompt, response, example: True), True),
        (length_reward, True),
        (CombinedReward({"right": TaskGrade(), "cut": MissingEOSPenalty()}), False),
        (PlusMinus(), True),
        (HalfGrade(grade_arithmetic), True),
        (CombinedReward({"right": PlusMinus()}), True),
        (Doubled({"right": TaskGrade()}), True),
        (CombinedReward({"long": length_reward, "late": left_out}), False),
    ],
    ids=[
        *("default", "grade", "task", "sum of one", "weighted", "sum", "another grader", "own", "rollout"),
        *("own task grade", "own grade", "sum of an own grade", "own sum", "sum with one left out"),
    ],
)
def test_what_is_exact_match_or_needs_a_rollout_is_not_measured(reward: Any, is_measured: bool) -> None:
    module, data = tiny_module(reward=reward), tiny_data()
    data.setup()
    module.use_data(data)
    module.check_evaluation()
    assert module.measures_reward == is_measured
    module.evaluate_batch(next(iter(data.val_dataloader())), 0)
    found = module.evaluation_metrics.compute()
    assert ("reward" in found) == is_measured
    assert "exact_match" in found
    assert module.evaluation_reward is None or module.evaluation_reward.last_parts == {}
