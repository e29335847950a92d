"""A number at the end of its range is refused in one line, or the run ends with finite weights, or names what broke."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import tiny_loop, tiny_module, trainable

from ippo_lightning.algorithms import GAE, AdaptiveKLController, CISPOLoss, ClippedLoss, FixedKLController, ValueLoss
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.maths import group_advantages
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.selection import Influence

VALUES = [0.0, 1e-320, 1e-45, 1e-38, 1e-30, 1e-5, 1.0, 25.0, 1e10, 1e25, 1e30, 3e38, 1e39, 1e300, math.inf, math.nan]

Made = dict[str, Any]
FIELDS: dict[str, Callable[[float], Made]] = {
    "optimizer.learning_rate": lambda x: {"optimizer": OptimizerSettings(learning_rate=x)},
    "optimizer.value_learning_rate": lambda x: {"optimizer": OptimizerSettings(value_learning_rate=x)},
    "optimizer.epsilon": lambda x: {"optimizer": OptimizerSettings(epsilon=x)},
    "optimizer.weight_decay": lambda x: {"optimizer": OptimizerSettings(learning_rate=1e-3, weight_decay=x)},
    "optimizer.betas": lambda x: {"optimizer": OptimizerSettings(betas=(x, x))},
    "sampling.temperature": lambda x: {"sampling": SamplingSettings(num_responses=2, max_new_tokens=4, temperature=x)},
    "loss.low": lambda x: {"loss": ClippedLoss(low=x)},
    "loss.high": lambda x: {"loss": ClippedLoss(high=x)},
    "loss.delta": lambda x: {"loss": ClippedLoss(delta=x)},
    "loss.beta": lambda x: {"loss": ClippedLoss(beta=x)},
    "loss.cap": lambda x: {"loss": CISPOLoss(cap=x)},
    "value_loss.coef": lambda x: {"value_loss": ValueLoss(coef=x)},
    "value_loss.clip_range": lambda x: {"value_loss": ValueLoss(clip_range=x)},
    "entropy_coef": lambda x: {"entropy_coef": x},
    "missing_eos_penalty": lambda x: {"missing_eos_penalty": x},
    "kl_controller.coef": lambda x: {"kl_controller": FixedKLController(coef=x)},
    "kl_controller.target": lambda x: {"kl_controller": AdaptiveKLController(target=x)},
    "kl_controller.horizon": lambda x: {"kl_controller": AdaptiveKLController(horizon=x)},
    "advantages.gamma": lambda x: {"advantages": GAE(gamma=x)},
    "advantages.gae_lambda": lambda x: {"advantages": GAE(gae_lambda=x)},
    "update.max_grad_norm": lambda x: {"update": {"max_grad_norm": x, "minibatch_size": 8}},
    "reward": lambda x: {"reward": lambda prompts, *_: [x * (row % 2) for row in range(len(prompts))]},
    "InfluenceFilter.max_weight": lambda x: {"callbacks": [InfluenceFilter(max_weight=x)]},
    "InfluenceFilter.threshold": lambda x: {"callbacks": [InfluenceFilter(threshold=x)]},
    "InfluenceFilter.power": lambda x: {"callbacks": [InfluenceFilter(Influence(power=x))]},
}


A_FIFTH = 0.05
"""Relative; the coefficient moves by at most a fifth, down from the one and up from the other end."""
BEGINNINGS = ("step ", "weights: ", "sampling: ", "NaN or infinity in ", "InfluenceFilter: ")
"""Of the lines that name what is not finite."""


def outcome(make: Callable[[float], Made], value: float, folder: Path) -> str:
    """Return "refused", "finite", or the line that names what is not finite; any other end raises."""
    try:
        made = make(value)
        callbacks = made.pop("callbacks", [])
        loop = tiny_loop(folder, tiny_module(**made), callbacks=callbacks, checkpoint_every_n_iterations=0)
        loop.fit()
    except UserError:
        return "refused"
    except FloatingPointError as error:
        return str(error)
    assert all(bool(torch.isfinite(weight).all()) for weight in trainable(loop.module).values())
    for row in loop.folder.read_rows("history.jsonl"):
        # The file has null for what is not finite. Without any kept episode there is no gradient.
        assert None not in [row.get(name, 0) for name in ("rollout/kl", "update/gradient_norm", "rollout/kl_coef")]
    return "finite"


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.filterwarnings("ignore")
def test_no_number_of_a_setting_ends_a_run_without_a_name(field: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = {value: outcome(FIELDS[field], value, tmp_path / str(place)) for place, value in enumerate(VALUES)}
    for end in ends.values():
        assert end in ("refused", "finite") or (end.startswith(BEGINNINGS) and "\n" not in end), ends
    # NaN is outside of every range, and some number of the list is inside.
    assert ends[math.nan] == "refused"
    assert "finite" in ends.values()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("optimizer.learning_rate", 1e30, "1e+30 is out of range; expected a number > 0 and <= 1"),
        ("optimizer.value_learning_rate", 25.0, "25.0 is out of range; expected a number > 0 and <= 1"),
        ("optimizer.epsilon", 1e-45, "out of range; expected a number >= 1e-30 and < inf"),
        ("optimizer.weight_decay", 1e10, "out of range; expected a number >= 0 and <= 1000"),
        ("sampling.temperature", 1e-38, "1e-38 is out of range; expected a number >= 0.0001 and < inf"),
        ("value_loss.coef", math.inf, "inf is out of range; expected a number >= 0 and < inf"),
        ("entropy_coef", math.inf, "inf is out of range; expected a number >= 0 and < inf"),
        ("missing_eos_penalty", math.inf, "inf is out of range; expected a number >= 0 and < inf"),
    ],
)
def test_what_breaks_every_run_is_refused_before_the_first_iteration(field: str, value: float, words: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny_module(**FIELDS[field](value))
    assert f"{field}: " in str(caught.value)
    assert words in str(caught.value)


def test_a_coefficient_that_moves_for_ever_stays_a_number() -> None:
    for kl, end in ((1e9, 1e30), (0.0, 1e-30)):
        controller = AdaptiveKLController(horizon=1.0)
        for _ in range(5000):
            controller.update(kl=kl, num_episodes=100)
        assert controller.coef == pytest.approx(end)
        # It comes back as soon as the divergence is on the other side of the target.
        controller.update(kl=12.0 - min(kl, 12.0), num_episodes=100)
        assert min(controller.coef, end) / max(controller.coef, end) == pytest.approx(0.8, rel=A_FIFTH)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e20, 1e38])
def test_advantages_of_large_rewards_are_those_of_small_ones(size: float) -> None:
    group = torch.tensor([0, 0, 0, 1, 1])
    unit = torch.tensor([3.0, 1.0, 2.0, -1.0, 3.0])
    scaled = group_advantages(rewards=unit * size, group=group, scale=True, epsilon=0.0)
    expected = group_advantages(rewards=unit.double(), group=group, scale=True, epsilon=0.0)
    assert scaled.dtype == torch.float32
    if size > 1e-20:  # the squares of smaller ones round to 0, and the constant beside them is far larger
        torch.testing.assert_close(scaled.double(), expected, rtol=1e-5, atol=1e-6)
