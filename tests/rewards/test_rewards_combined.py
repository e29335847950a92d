"""Several rewards with weights: the sum, the parts in the log, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import start_method
from torch import multiprocessing as mp
from torch import nn
from training_parts import tiny_loop, tiny_module

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import CombinedReward, FormatReward, HeldReward, MissingEOSPenalty, TaskGrade
from ippo_lightning.rewards.part_metrics import part_metrics
from ippo_lightning.tasks import grade_arithmetic

SINGLE_PRECISION = 1e-6  # rewards are float32
TEXTS = (["7+5?"] * 3, ["7+5=12;#12", "#12", "13"], [{}] * 3)


def length(prompts, responses, examples):
    return [float(len(response)) for response in responses]


def test_the_reward_is_the_weighted_sum_and_the_parts_are_its_summands() -> None:
    rewards = {"right": TaskGrade(), "form": FormatReward(["#"]), "length": length}
    held = HeldReward(CombinedReward(rewards, {"form": 0.5, "length": -0.1}))
    total = held(*TEXTS, grader=grade_arithmetic)
    right, form, lengths = [1, 1, 0], [1, 1, 0], [10, 3, 2]
    expected = [a + 0.5 * b - 0.1 * c for a, b, c in zip(right, form, lengths, strict=True)]
    assert total.tolist() == pytest.approx(expected, abs=SINGLE_PRECISION)
    assert held.take_metrics() == pytest.approx(
        {"rollout/reward/right": 2 / 3, "rollout/reward/form": 1 / 3, "rollout/reward/length": -0.5},
        abs=SINGLE_PRECISION,
    )
    assert held.take_metrics() == {}, "each call is logged once"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, prompts, responses, examples):
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.net(torch.ones(len(responses), 1))


def test_a_part_that_is_a_module_is_called_in_eval_mode() -> None:
    model = Model().train()
    HeldReward(CombinedReward({"model": model}))(*TEXTS)
    assert model.training


def test_a_part_that_fails_is_named() -> None:
    def broken(prompts, responses, examples):
        return [0.0, float("inf"), 0.0]

    with pytest.raises(UserError, match=r"CombinedReward returned inf as part broken for episode 1; expected a finite"):
        HeldReward(CombinedReward({"length": length, "broken": broken}))(*TEXTS)
    with pytest.raises(UserError, match=r"model\.reward: \S*lambda> returned function; expected 3 numbers"):
        HeldReward(CombinedReward({"length": lambda *_: length}))(*TEXTS)


@pytest.mark.parametrize(
    ("rewards", "weights", "said"),
    [
        ({}, None, r"reward\.rewards: \{\} is wrong; expected 1 to 32 rewards by name"),
        ({"a b": length}, None, r"reward\.rewards: 'a b' is no name"),
        ({"a": "length"}, None, r"model\.reward: builtins\.str is not callable"),
        ({"a": length}, {"b": 1.0}, r"reward\.weights\.b: no reward has this name; expected a"),
        ({"a": length}, {"a": float("nan")}, r"reward\.weights\.a: nan is out of range"),
        ({"a": lambda prompts: 1}, None, r"does not take three arguments"),
    ],
)
def test_a_mistake_is_named_before_the_first_iteration(rewards, weights, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CombinedReward(rewards, weights)


def test_the_grade_needs_a_grader() -> None:
    with pytest.raises(UserError, match=r"^reward: TaskGrade is the grade of the run, which has no grader"):
        HeldReward(CombinedReward({"right": TaskGrade()}))(*TEXTS)


def test_a_run_logs_each_part_and_they_add_up_to_the_reward(tmp_path: Path) -> None:
    reward = CombinedReward({"right": TaskGrade(), "cut": MissingEOSPenalty()}, {"cut": 0.25})
    tiny_loop(tmp_path / "run", tiny_module(reward=reward)).fit()
    lines = (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    for numbers in map(json.loads, lines):
        cut, right = numbers["rollout/reward/cut"], numbers["rollout/reward/right"]
        assert cut == pytest.approx(-0.25 * numbers["rollout/truncated_fraction"], abs=SINGLE_PRECISION)
        assert cut + right == pytest.approx(numbers["rollout/reward_mean"], abs=SINGLE_PRECISION)


# --- several ranks --------------------------------------------------------------------------------------------

PARTS = [
    {"form": [1.0, 0.0, 1.0, 1.0, 0.0], "length": [-1.0, -2.0, float("nan"), -4.0, -5.0]},
    {"length": [-10.0], "form": [1.0]},
]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = part_metrics({name: torch.tensor(values) for name, values in PARTS[rank].items()})
    assert found == {"rollout/reward/form": 4 / 6, "rollout/reward/length": -22 / 5}
    with pytest.raises(UserError, match=f"parts part{rank} on this rank, and others on another"):
        part_metrics({f"part{rank}": torch.ones(1)})
    with pytest.raises(UserError, match=f"parts {['form', '.none.'][rank]} on this rank, and others on another"):
        part_metrics({} if rank else {"form": torch.ones(1)})
    assert part_metrics({}) == {}
    dist.destroy_process_group()


def test_uneven_ranks_log_the_means_over_all_episodes_and_refuse_different_names(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method=start_method())
