"""Any split of a minibatch adds up to the undivided gradient: denominators are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_parts import prepared, tiny_loop, tiny_module

from ippo_lightning.engine import run_update
from ippo_lightning.maths import LossReduction
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import Minibatch, UpdatePlan

SIZES = {"episode_mean": "rows", "token_mean": "tokens", "rollout_token_mean": "mean tokens", "fixed_length": "rows"}


def test_parts_of_a_minibatch_add_up_to_the_gradient_of_the_whole() -> None:
    """What a rank adds is its sum over the common denominator, so any split adds up to the undivided gradient."""
    module = tiny_module()
    episodes = prepared(module)

    def gradients(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        module.zero_grad()
        for rows in parts:
            minibatch = Minibatch(
                episodes=episodes.select(rows),
                weights=torch.ones(len(rows)),
                value_weights=torch.ones(len(rows)),
                policy_denominator=float(len(episodes)),
                value_denominator=float(len(episodes)),
            )
            module.minibatch_loss(minibatch)[0].backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    rows = torch.arange(len(episodes))
    for whole, halves in zip(gradients([rows]), gradients([rows[:5], rows[5:]]), strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", get_args(LossReduction))
def test_the_denominators_are_rows_or_tokens_of_the_step_or_the_mean_tokens_of_all_steps(
    reduction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_module(update={"minibatch_size": 8, "micro_batch_size": 3, "loss_reduction": reduction})
    tiny_loop(tmp_path / "run", module).set_up()
    plan = UpdatePlan(episodes=prepared(module))
    plan.drop(torch.arange(16) < 5, reason="test")
    seen: list[list[Minibatch]] = [[]]
    honest_loss, honest_step = PPOModule.minibatch_loss, PPOModule.take_step

    def noted(self: PPOModule, minibatch: Minibatch) -> Any:
        seen[-1].append(minibatch)
        return honest_loss(self, minibatch)

    def stepped(self: PPOModule) -> float:
        seen.append([])
        return honest_step(self)

    monkeypatch.setattr(PPOModule, "minibatch_loss", noted)
    monkeypatch.setattr(PPOModule, "take_step", stepped)
    run_update(module, plan, module.update_settings)
    steps = [step for step in seen if step]
    assert len(steps) == 2
    tokens = [sum(part.episodes.num_steps for part in step) for step in steps]
    rows = [sum(len(part.episodes) for part in step) for step in steps]
    assert tokens[0] != tokens[1]
    expected = {"rows": rows, "tokens": tokens, "mean tokens": [sum(tokens) / 2] * 2}[SIZES[reduction]]
    for step, size in zip(steps, expected, strict=True):
        assert {part.policy_denominator for part in step} == {size}
        assert {part.value_denominator for part in step} == {size}
