"""NaN and infinity: the episode and the quantity are named; the run stops, or goes on without the episode."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import length_reward, prepared, same, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.engine import run_update
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import RolloutPlan, TextEpisodes, UpdatePlan

BROKEN = 3


class BreaksLogProbs(PPOModule):
    """The policy gives a log-prob that is no number, in one episode of every rollout."""

    def rollout(self, plan: RolloutPlan) -> TextEpisodes:
        episodes = super().rollout(plan)
        log_probs = episodes.log_probs.clone()
        log_probs[BROKEN, 0] = math.nan
        return episodes.evolve(log_probs=log_probs)


class BreaksScores(PPOModule):
    """The losses that are scored, and only they, are infinite in one episode."""

    def episode_losses(self, episodes: TextEpisodes) -> torch.Tensor:
        losses = super().episode_losses(episodes)
        is_broken = torch.tensor([prompt == self.broken_prompt for prompt in episodes.prompts])
        return losses * torch.where(is_broken, math.inf, 1.0)

    def rollout(self, plan: RolloutPlan) -> TextEpisodes:
        episodes = super().rollout(plan)
        self.broken_prompt = episodes.prompts[BROKEN]
        return episodes


def broken_reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
    rewards = length_reward(prompts, responses, examples)
    return [math.inf if row == BROKEN else reward for row, reward in enumerate(rewards)]


def module_of(kind: type[PPOModule], rule: str, **changes: Any) -> PPOModule:
    plain = tiny_module(update={"on_nonfinite": rule}, **changes)
    parts = {"grader": plain.grader, "sampling": plain.sampling, "optimizer": plain.optimizer_settings}
    return kind(policy=plain.policy, reward=plain.reward, update=plain.update_settings, **parts)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_log_prob_that_is_no_number_stops_the_run_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=rf"log_probs of episode {BROKEN} \(prompt '\d"):
        tiny_loop(tmp_path / "run", module_of(BreaksLogProbs, "stop")).fit()


def test_a_log_prob_that_is_no_number_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = module_of(BreaksLogProbs, "skip")
    with caplog.at_level(logging.WARNING):
        tiny_loop(tmp_path / "run", module).fit()
    assert f"log_probs of episode {BROKEN}" in caplog.text
    assert [row["rollout/nonfinite_episodes"] for row in history(tmp_path / "run")] == [1, 1]
    assert [row["rollout/episodes"] for row in history(tmp_path / "run")] == [15, 15]
    assert all(torch.isfinite(value).all() for value in trainable(module).values())


def test_an_infinite_reward_can_be_left_out(tmp_path: Path) -> None:
    module = module_of(PPOModule, "skip", reward=broken_reward)
    tiny_loop(tmp_path / "run", module).fit()
    assert [row["rollout/episodes"] for row in history(tmp_path / "run")] == [15, 15]


def test_where_every_episode_is_broken_the_run_stops_whatever_the_rule(tmp_path: Path) -> None:
    module = module_of(PPOModule, "skip", reward=lambda prompts, responses, examples: [math.nan] * len(prompts))
    with pytest.raises(FloatingPointError, match="outcome_rewards of episode 0"):
        tiny_loop(tmp_path / "run", module).fit()


def broken_plan(module: PPOModule, *, value: float) -> UpdatePlan:
    """One episode whose advantages are not finite, so that its loss or gradient is not."""
    episodes = prepared(module)
    advantages = episodes.advantages.clone()
    advantages[BROKEN] = value
    return UpdatePlan(episodes=episodes.evolve(advantages=advantages))


def test_a_loss_that_is_not_finite_stops_before_the_step_and_is_named(tmp_path: Path) -> None:
    module = tiny_module(update={"minibatch_size": 16})
    tiny_loop(tmp_path / "run", module).set_up()
    before = trainable(module)
    with pytest.raises(FloatingPointError, match=rf"loss of episode {BROKEN} "):
        run_update(module, broken_plan(module, value=math.nan), module.update_settings)
    assert same(before, trainable(module))


def test_without_the_broken_episode_the_update_is_that_of_the_others(tmp_path: Path) -> None:
    results = []
    for is_broken in (True, False):
        module = tiny_module(update={"on_nonfinite": "skip", "num_epochs": 2, "minibatch_size": 16})
        tiny_loop(tmp_path / str(is_broken), module).set_up()
        torch.manual_seed(0)
        plan = broken_plan(module, value=math.nan if is_broken else 0.0)
        if not is_broken:
            plan = UpdatePlan(episodes=plan.episodes.select([row for row in range(16) if row != BROKEN]))
        torch.manual_seed(1)
        outcome = run_update(module, plan, module.update_settings)
        results.append((module, outcome))
    assert results[0][1].metrics["update/nonfinite_episodes"] == 1
    assert results[0][1].optimizer_steps == results[1][1].optimizer_steps == 2
    pairs = zip(trainable(results[0][0]).values(), trainable(results[1][0]).values(), strict=True)
    assert max(float((first - second).abs().max()) for first, second in pairs) < 1e-5  # rounding of another order


def test_a_score_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path) -> None:
    module = module_of(BreaksScores, "stop")
    with pytest.raises(FloatingPointError, match=r"score of episode \d+.* \(prompt '\d"):
        tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter()]).fit()


@pytest.mark.filterwarnings("ignore:InfluenceFilter")
def test_a_score_that_is_not_finite_can_drop_its_episode(tmp_path: Path) -> None:
    module = module_of(BreaksScores, "stop")
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter(on_nonfinite="skip")]).fit()
    rows = history(tmp_path / "run")
    assert all(row["influence/nonfinite_episodes"] == 2 for row in rows)  # both responses to that prompt
    stats = module.last_stats
    assert stats is not None
    dropped = [weight for weight, prompt in zip(stats.plan.weights, stats.episodes.prompts, strict=True)
               if prompt == module.broken_prompt]  # fmt: skip
    assert [float(weight) for weight in dropped] == [0.0, 0.0]
