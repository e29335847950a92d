"""A row that does not fit the model is found before the first iteration, and named or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule, SFTModule
from ippo_lightning.policies import SamplingSettings
from tests.support.training_parts import length_reward, tiny_loop, tiny_policy

CONTEXT = 64
LONG = "1+" * 40 + "1?"
"""82 tokens; a prompt may have 56 beside 8 of the response."""


class Rows:
    """A task whose second row of one split is too long."""

    def __init__(self, split: str, prompt: str = LONG) -> None:
        self.split, self.prompt = split, prompt

    def rows(self, split: str) -> list[dict[str, Any]]:
        prompts = ["1?", self.prompt if split == self.split else "2?", "3?", "4?"]
        return [{"prompt": prompt, "example": {"answer": "1"}, "response": "#1"} for prompt in prompts]

    def grade(self, prompt: str, response: str, example: dict[str, Any]) -> bool:
        return True


def ppo() -> PPOModule:
    return PPOModule(policy=tiny_policy(), reward=length_reward, sampling=SamplingSettings(max_new_tokens=8))


def sft() -> SFTModule:
    return SFTModule(policy=tiny_policy(), evaluation=SamplingSettings(max_new_tokens=8))


def data(split: str, **settings: Any) -> TextDataModule:
    made = TextDataModule(Rows(split, settings.pop("prompt", LONG)), batch_size=2, **settings)
    made.setup()
    return made


@pytest.mark.parametrize(
    ("make", "split", "words"),
    [
        (ppo, "prompts", "82 tokens .* context of 64 less sampling.max_new_tokens = 8 leaves 56"),
        (ppo, "validation", "82 tokens .* context of 64 less evaluation.max_new_tokens = 8 leaves 56"),
        (ppo, "influence", "85 tokens .* context is 64"),
        (sft, "demonstrations", "85 tokens .* context is 64"),
        (sft, "test", "82 tokens .* leaves 56"),
    ],
)
def test_an_overlong_row_is_named_with_its_length(make: Any, split: str, words: str) -> None:
    with pytest.raises(UserError, match=f"data: row 1 of {split} has {words}.*set data.overlong_rows: drop") as caught:
        make().use_data(data(split))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "split"), [(ppo, "demonstrations"), (sft, "prompts"), (sft, "influence")])
def test_rows_that_a_module_does_not_read_are_not_checked(make: Any, split: str) -> None:
    make().use_data(data(split))


@pytest.mark.parametrize(
    ("make", "split"), [(ppo, "prompts"), (ppo, "influence"), (sft, "demonstrations"), (sft, "test")]
)
def test_overlong_rows_are_dropped_with_a_warning(make: Any, split: str) -> None:
    made = data(split, overlong_rows="drop")
    with pytest.warns(UserWarning, match=f"leaves out 1 of 4 rows; data: row 1 of {split} has"):
        make().use_data(made)
    assert [row["prompt"] for row in getattr(made.splits, split)] == ["1?", "3?", "4?"]
    make().use_data(made)  # nothing is left to find


def test_a_row_that_just_fits_stays() -> None:
    ppo().use_data(data("prompts", prompt="1" * 110 + "?"))  # 55 tokens of two digits, and one
    with pytest.raises(UserError, match="has 57 tokens"):
        ppo().use_data(data("prompts", prompt="1" * 111 + "?"))


def test_a_split_without_a_row_that_fits_is_refused() -> None:
    made = TextDataModule(Rows("none"), batch_size=2, overlong_rows="drop")
    made.setup()
    module = PPOModule(policy=tiny_policy(), reward=length_reward, sampling=SamplingSettings(max_new_tokens=63))
    with pytest.raises(UserError, match="drop would leave no row of prompts"):
        module.use_data(made)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.overlong_rows: 'skip' is unknown"):
        data("prompts", overlong_rows="skip")


@pytest.mark.parametrize("prompt", ["", None, 3])
def test_a_row_without_a_prompt_is_named(prompt: Any) -> None:
    with pytest.raises(UserError, match="data: row 1 of prompts: "):
        ppo().use_data(data("prompts", prompt=prompt))


@pytest.mark.filterwarnings("ignore:data.overlong_rows")
def test_a_run_ends_before_its_first_iteration_or_goes_on_without_the_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data: row 1 of prompts has 82 tokens"):
        tiny_loop(tmp_path / "refused", ppo(), data=data("prompts")).fit()
    assert not (tmp_path / "refused" / "history.jsonl").exists()
    module = ppo()
    tiny_loop(tmp_path / "dropped", module, data=data("prompts", overlong_rows="drop")).fit()
    assert module.iteration == 2


def test_greedy_sampling_is_for_evaluation_only() -> None:
    greedy = SamplingSettings(greedy=True)
    with pytest.raises(UserError, match=r"model.sampling.greedy: true is for evaluation; set it in model.evaluation"):
        PPOModule(policy=tiny_policy(), reward=length_reward, sampling=greedy)
    PPOModule(policy=tiny_policy(), reward=length_reward, evaluation=greedy)


def test_a_run_that_never_evaluates_needs_no_room_for_it(tmp_path: Path) -> None:
    module = SFTModule(policy=tiny_policy(), evaluation=SamplingSettings(max_new_tokens=CONTEXT))
    tiny_loop(tmp_path / "run", module, data=data("none", stage="sft")).fit()
    assert module.iteration == 2
