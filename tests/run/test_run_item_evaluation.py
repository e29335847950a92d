"""What an item is with a grader, with a reward alone, and with data of other kinds; what has no items is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from training_parts import length_reward, tiny_data, tiny_loop, tiny_module

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.rewards import MissingEOSPenalty
from ippo_lightning.run.evaluation_folder import EvaluationFolder
from ippo_lightning.run.evaluation_numbers import by_prompt, ratios
from ippo_lightning.run.item_evaluation import (
    Prompt,
    batch_sizes,
    check_judge,
    evaluate_items,
    prompts_of,
    settings_of,
    text_module,
)
from ippo_lightning.run.items import Item

SAMPLES, PROMPTS = 2, 4
SINGLE_PRECISION = 1e-6
"""The states of a run's own metrics are float32."""


class NoAnswers:
    """A task with prompts only."""

    can_grade = False

    def rows(self, split: str) -> list[Any]:
        return list(tiny_data().task.rows(split))

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> bool:
        raise AssertionError("the task knows no right answers")


class Batches(LightningDataModule):
    """Data of another library: a list of batches and no rows."""

    def test_dataloader(self) -> list[dict[str, Any]]:
        rows = tiny_data().task.rows("test")
        return [{"prompts": [row["prompt"]], "examples": [row["example"]]} for row in rows]


def items_of(folder: Path, module: PPOModule, data: Any, *, batch_size: int = 3) -> list[Item]:
    loop = tiny_loop(folder / "run", module, data=data)
    loop.set_up_evaluation()
    check_judge(module)
    prompts = prompts_of(loop, "test")
    sizes = batch_sizes(len(prompts), batch_size=batch_size, samples=SAMPLES)
    place = EvaluationFolder(folder / "evaluation", sizes=sizes)
    place.begin(settings_of(module, prompts))
    found = evaluate_items(loop, place, prompts, batch_size=batch_size)
    place.release()
    assert found is not None
    return found


def test_without_a_grader_an_item_has_its_reward(tmp_path: Path) -> None:
    items = items_of(tmp_path, tiny_module(grader=None), TextDataModule(NoAnswers(), batch_size=8))
    assert len(items) == PROMPTS * SAMPLES
    rewards = length_reward([one["prompt"] for one in items], [one["response"] for one in items], None)
    assert [one["reward"] for one in items] == pytest.approx(rewards, rel=1e-6)
    assert {one[name] for one in items for name in ("correct", "label", "answer", "faithful", "reference")} == {None}


@pytest.mark.parametrize("reward", [None, length_reward], ids=["the grade", "another"])
def test_with_a_grader_an_item_has_its_grade_and_a_reward_that_is_another(reward: Any, tmp_path: Path) -> None:
    module, data = tiny_module(reward=reward), tiny_data()
    items = items_of(tmp_path, module, data)
    numbers = ratios(by_prompt(items), ks=[1])
    assert ("reward" in numbers) == (reward is not None)
    assert module.grader is not None
    rows = data.splits.test
    for one in items:
        row = rows[one["prompt_index"]]
        grade = module.grader(one["prompt"], one["response"], row["example"])
        assert (one["correct"], one["label"], one["answer"]) == (grade.correct, grade.label, grade.answer)
        expected = None if reward is None else reward([one["prompt"]], [one["response"]], None)[0]
        assert one["reference"] == str(row["example"]["answer"])
        assert one["reward"] == (None if expected is None else pytest.approx(expected, rel=1e-6))
        ids = module.policy.tokenizer(one["response"], add_special_tokens=False).input_ids
        assert one["truncated"] == (one["response_tokens"] == module.evaluation.max_new_tokens) or len(ids) < 8


def parts_reward(prompts: Any, responses: Any, examples: Any) -> dict[str, list[float]]:
    """Two parts, of which the second is infinite for half of the prompts."""
    lengths = [-0.1 * len(response) for response in responses]
    return {"length": lengths, "odd": [1.0 if len(prompt) % 2 else math.inf for prompt in prompts]}


@pytest.mark.parametrize("grader", [{}, {"grader": None}], ids=["beside grades", "alone"])
def test_the_parts_of_a_reward_have_the_numbers_of_the_runs_own_evaluation(
    grader: dict[str, Any], tmp_path: Path
) -> None:
    module = tiny_module(reward=parts_reward, **grader)
    data = TextDataModule(NoAnswers(), batch_size=8, evaluation_batch_size=3)
    items = items_of(tmp_path, module, data, batch_size=3)
    loop = tiny_loop(tmp_path / "own", module, data=data)
    loop.set_up_evaluation()
    own = {name: value for name, value in loop.evaluate("test").items() if name.startswith("reward")}
    found = {name: ratio.value for name, ratio in ratios(by_prompt(items), ks=[1]).items() if name in own}
    assert found == pytest.approx(own, rel=SINGLE_PRECISION)
    assert set(found) == {"reward", "reward/length", "reward/odd"}
    assert found["reward/odd"] == 1.0


def test_data_of_another_library_have_the_items_of_their_prompts(tmp_path: Path) -> None:
    own = items_of(tmp_path / "own", tiny_module(), tiny_data())
    others = items_of(tmp_path / "others", tiny_module(), Batches())
    assert own == others


def random_reward(prompts: Any, responses: Any, examples: Any) -> torch.Tensor:
    return torch.rand(len(prompts))


def test_training_goes_on_with_the_same_random_numbers_whatever_sampler_and_reward_draw(tmp_path: Path) -> None:
    found = []
    for seed in (5, 6):
        module = tiny_module(reward=random_reward)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(items_of(tmp_path / str(seed), module, tiny_data()))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]
    assert len({one["reward"] for one in found[0]}) > 1


def test_a_corrected_right_answer_is_another_evaluation() -> None:
    module = tiny_module()
    settings = [
        # with an object as a task may have it, whose text would name its address
        settings_of(module, [Prompt("1+1?", {"answer": answer, "judge": object()})])
        for answer in ("2", "3", "2")
    ]
    assert settings[0] == settings[2] != settings[1]


def test_what_has_no_items_is_refused() -> None:
    class OwnWay(PPOModule):
        def evaluate_batch(self, batch: Any, batch_index: int) -> None:
            """Evaluate in a way of its own."""

    module = tiny_module()
    own = OwnWay(policy=module.policy, reward=length_reward)
    with pytest.raises(UserError, match=r"^model: OwnWay evaluates in its own way \(evaluate_batch\)"):
        text_module(own)
    with pytest.raises(UserError, match="is no TextModule"):
        text_module(torch.nn.Linear(1, 1))
    assert text_module(module) is module
    with pytest.raises(UserError, match="needs a grader, or a reward of texts"):
        check_judge(tiny_module(grader=None, reward=None))
    with pytest.raises(UserError, match="and the reward counts tokens of a rollout"):
        check_judge(tiny_module(grader=None, reward=MissingEOSPenalty()))
