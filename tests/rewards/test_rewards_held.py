"""A reward or grader that a module keeps in a holder is no part of it: not trained, not saved, not switched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import HeldGrader, HeldReward
from ippo_lightning.tasks import Grade, Label, grade_arithmetic

TEXTS = (["a", "b"], ["c", "d"], [{}, {}])


class RewardModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        self.eval()

    def forward(self, prompts, responses, examples):
        return self.net(torch.ones(len(responses), 4))


class Judge(RewardModel):
    def forward(self, prompt, response, example):
        return bool(self.net(torch.ones(1, 4)) > -100)


class Trained(LightningModule):
    def __init__(self, reward: Any, grader: Any) -> None:
        super().__init__()
        self.policy = nn.Linear(2, 2)
        self.reward = reward
        self.grader = grader


def test_a_module_that_holds_them_has_none_of_their_parameters() -> None:
    module = Trained(HeldReward(RewardModel()), HeldGrader(Judge()))
    assert {name for name, _ in module.named_parameters()} == {"policy.weight", "policy.bias"}
    assert set(module.state_dict()) == {"policy.weight", "policy.bias"}
    assert list(module.children()) == [module.policy]
    optimizer = torch.optim.AdamW(module.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_without_a_holder_they_would_be_part_of_it() -> None:
    assert "reward.net.1.weight" in Trained(RewardModel(), None).state_dict()


def test_modes_and_precision_of_the_module_are_not_theirs() -> None:
    reward = RewardModel()
    module = Trained(HeldReward(reward), None)
    module.train().half().requires_grad_(False)
    assert not any(part.training for part in reward.modules())
    assert {parameter.dtype for parameter in reward.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in reward.parameters())


def test_no_gradient_reaches_a_reward_model() -> None:
    reward = RewardModel()
    module = Trained(HeldReward(reward), None)
    loss = (module.policy.weight.sum() * module.reward(*TEXTS)).sum()
    loss.backward()
    assert module.policy.weight.grad is not None
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_a_held_reward_returns_checked_rewards() -> None:
    rewards = HeldReward(lambda prompts, responses, examples: [1, float("nan")])
    with pytest.raises(UserError, match=r"returned nan for episode 1"):
        rewards(*TEXTS)
    assert rewards(*TEXTS, allow_nonfinite=True).isnan().tolist() == [False, True]


def test_a_held_grader_returns_grades() -> None:
    assert HeldGrader(Judge())("a", "b", {}) == Grade(True)
    assert HeldGrader(lambda prompt, response, example: "polite")("a", "b", {}) == Grade(True, "polite")
    assert HeldGrader(grade_arithmetic)("1+1?", "#2", {}) == Grade(True, Label.SHORTCUT, "2")


def test_a_held_grader_is_checked_under_the_name_of_the_users_own() -> None:
    def broken(prompt, response, example):
        return [1.0]

    with pytest.raises(UserError, match=r"^model\.grader: \S*broken returned list; expected a Grade") as caught:
        HeldGrader(broken).check([{"prompt": "a", "example": {}}])
    assert "HeldGrader" not in str(caught.value)


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (HeldReward, r"^model\.reward: builtins\.str is not callable; expected reward\(prompts, responses, examples\)"),
        (HeldGrader, r"^model\.grader: builtins\.str is not callable; expected grader\(prompt, response, example\)"),
    ],
)
def test_what_cannot_be_called_is_named(holder: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        holder("my_rewards.by_length")


def test_a_holder_can_be_copied_with_its_module() -> None:
    module = copy.deepcopy(Trained(HeldReward(RewardModel()), HeldGrader(grade_arithmetic)))
    assert module.reward(*TEXTS).shape == (2,)
