"""A run with pilot responses: what it trains on and counts, what it goes with, and how it goes on after a break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from training_parts import BrokenFirst, RecordedReward, same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import EpisodeLog, InfluenceFilter, PromptSelection
from ippo_lightning.engine import DynamicSampling, PilotCommit
from ippo_lightning.errors import UserError
from ippo_lightning.maths import group_variances
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import LoraSettings, SamplingSettings
from ippo_lightning.records import UpdateStats
from ippo_lightning.rewards import CombinedReward
from ippo_lightning.selection import RandomPrompts

THREE = PilotCommit(num_prompts=3)
"""Of batches of eight, with two pilots and two more responses."""
SAMPLED = 8 * 2 + 3 * 2
SAMPLING = SamplingSettings(num_responses=4, max_new_tokens=8, stop_tokens=["1", "2", "3"])
ROUNDING = 1e-5
"""Means of a few rewards in float32."""


def by_length(prompts: Any, responses: Any, examples: Any) -> list[float]:
    return [0.1 * len(response) for response in responses]


def committing(name: str = "grpo", **changes: Any) -> Any:
    settings = {"reward": by_length, "sampling": SAMPLING, "pilot_commit": THREE}
    return critic_free_module(name, **{**settings, **changes})


def run(folder: Path, module: Any, **changes: Any) -> UpdateStats:
    tiny_loop(folder, module, **changes).fit()
    assert module.last_stats is not None
    return module.last_stats


def pilots_of(sampled: Any) -> torch.Tensor:
    """The first two rows of each group."""
    rows = [(sampled.group == number).nonzero().flatten()[:2] for number in sampled.group.unique()]
    return torch.cat(rows)


def test_an_iteration_trains_on_whole_groups_of_the_highest_variance_and_counts_all_episodes(tmp_path: Path) -> None:
    module = committing()
    stats = run(tmp_path / "run", module, max_iterations=1)
    everything, episodes = stats.sampled, stats.episodes
    pilots = everything.select(pilots_of(everything))
    variances, _ = group_variances(rewards=pilots.outcome_rewards, group=pilots.group, num_groups=8)
    assert len(variances.unique()) > 4, "the case has something to order"
    chosen = episodes.group.unique()
    assert variances[chosen].min() >= variances[[place for place in range(8) if place not in chosen]].max()
    assert episodes.group.tolist() == [number for number in chosen.tolist() for _ in range(4)]
    for number in chosen:
        assert float(episodes.advantages[episodes.group == number, 0].sum()) == pytest.approx(0.0, abs=ROUNDING)
    assert len(everything) == module.episodes_seen == stats.num_episodes == stats.metrics["rollout/episodes"] == SAMPLED
    assert stats.metrics["pilot_commit/pilots"] == 16
    assert stats.metrics["pilot_commit/pilots_discarded"] == 10
    assert stats.metrics["pilot_commit/reward_mean"] == pytest.approx(float(pilots.outcome_rewards.mean()))
    assert stats.metrics["rollout/reward_mean"] == pytest.approx(float(everything.outcome_rewards.mean()), rel=ROUNDING)


@pytest.mark.parametrize("rule", ["variance", pytest.param("random", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_unbroken_one_bit_by_bit(rule: Any, tmp_path: Path) -> None:
    settings = PilotCommit(num_prompts=3, rule=rule)
    whole, broken, resumed = (committing(pilot_commit=settings) for _ in range(3))
    tiny_loop(tmp_path / "whole", whole, max_iterations=4).fit()
    tiny_loop(tmp_path / "broken", broken, max_iterations=2).fit()
    tiny_loop(tmp_path / "broken", resumed, max_iterations=4, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))
    assert whole.progress_state() == resumed.progress_state()


@pytest.mark.slow
def test_trainer_gives_what_the_loop_gives_and_a_checkpoint_knows_the_settings(tmp_path: Path) -> None:
    by_loop, by_trainer = committing(), committing()
    tiny_loop(tmp_path / "run", by_loop, max_iterations=4).fit()
    seed_everything(5)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=-1,
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0)],
    )
    trainer.fit(by_trainer, datamodule=tiny_data())
    assert same(trainable(by_loop), trainable(by_trainer))
    assert by_trainer.episodes_seen == 4 * SAMPLED
    rebuilt = PPOModule.load_from_checkpoint(tmp_path / "kept" / "last.ckpt", reward=by_length)
    assert rebuilt.pilot_commit == THREE


COMPOSED: dict[str, dict[str, Any]] = {
    "leave one out": {"name": "rloo"},
    "adapter": {"policy": lambda: tiny_policy(value="none", lora=LoraSettings(r=2))},
    "small passes": {"update": {"max_tokens": 40, "micro_batch_size": 2}},
    "continuous batching": {"sampling": SamplingSettings(num_responses=4, max_new_tokens=8, sampler="continuous")},
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case == "continuous batching" else ()) for case in COMPOSED],
)
def test_pilots_go_with(case: str, tmp_path: Path) -> None:
    changes = dict(COMPOSED[case])
    if "policy" in changes:
        changes["policy"] = changes["policy"]()
    module = committing(changes.pop("name", "grpo"), **changes)
    before = trainable(module)
    stats = run(tmp_path / "run", module)
    assert (len(stats.episodes), len(stats.sampled)) == (12, SAMPLED)
    assert not same(before, trainable(module))


def test_ppo_with_a_critic_trains_on_the_chosen_prompts(tmp_path: Path) -> None:
    module = tiny_module(reward=by_length, sampling=SAMPLING, pilot_commit=THREE)
    before = trainable(module)
    stats = run(tmp_path / "run", module)
    assert stats.episodes.values.abs().sum() > 0
    after = trainable(module)
    assert [name for name in after if "value" in name and not torch.equal(before[name], after[name])]
    assert len(stats.episodes) == 12


def test_a_filter_of_whole_groups_and_kept_buffers_see_the_chosen_prompts(tmp_path: Path) -> None:
    callbacks = [InfluenceFilter(whole_groups="sum", min_keep=1), EpisodeLog(keep_buffers=True)]
    module = committing()
    loop = tiny_loop(tmp_path / "run", module, callbacks=callbacks, max_iterations=1)
    loop.fit()
    stats = module.last_stats
    assert len(stats.plan.weights) == 12
    keep, group = stats.plan.keep, stats.episodes.group
    assert all(len(keep[group == number].unique()) == 1 for number in group.unique())
    assert len(loop.folder.read_rows("episodes.jsonl")) == 12


def test_broken_rewards_are_skipped_in_both_calls(tmp_path: Path) -> None:
    reward = BrokenFirst(by_length)
    module = committing(reward=reward, update={"on_nonfinite": "skip"})
    stats = run(tmp_path / "run", module, max_iterations=1)
    assert reward.calls == [16, 6]
    assert stats.metrics["rollout/nonfinite_episodes"] == 2
    assert len(stats.sampled) == SAMPLED - 2


def test_an_evaluation_calls_the_reward_with_no_more_responses_than_training_does(tmp_path: Path) -> None:
    reward = RecordedReward()
    changes = {"max_iterations": 1, "evaluate_every_n_iterations": 1, "data": tiny_data(num_validation=12)}
    run(tmp_path / "run", committing(reward=reward), **changes)
    assert len(reward.calls) > 2
    assert max(reward.calls) == 16


def test_the_parts_of_a_reward_are_means_over_both_calls(tmp_path: Path) -> None:
    module = committing(reward=CombinedReward({"length": by_length}))
    loop = tiny_loop(tmp_path / "run", module, max_iterations=1)
    loop.fit()
    row = loop.folder.read_rows("history.jsonl")[0]
    assert row["rollout/reward/length"] == pytest.approx(row["rollout/reward_mean"], rel=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pilot_commit": {"num_pilots": 1}}, r"model\.pilot_commit: got dict; expected PilotCommit"),
        ({"dynamic_sampling": DynamicSampling()}, r"model\.dynamic_sampling chooses prompts, too; leave out one"),
        ({"pilot_commit": PilotCommit(num_pilots=4)}, r"num_pilots: 4 of .*num_responses: 4 leaves .* at most 3"),
        ({"sampling": SamplingSettings(num_responses=1)}, r"sampling\.num_responses: 1, .* expected at least 2"),
    ],
)
def test_a_module_that_cannot_have_pilots_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_module(**{"sampling": SAMPLING, "pilot_commit": THREE, **changes})


@pytest.mark.parametrize("num_prompts", [8, 9])
def test_a_batch_without_a_choice_is_refused_before_the_first_iteration(num_prompts: int, tmp_path: Path) -> None:
    module = committing(pilot_commit=PilotCommit(num_prompts=num_prompts))
    with pytest.raises(UserError, match=rf"data\.batch_size: 8 leaves no choice, .* chooses {num_prompts} prompts"):
        tiny_loop(tmp_path / "run", module).fit()
    assert module.iteration == 0


def test_a_second_choice_of_prompts_is_refused_before_the_first_iteration(tmp_path: Path) -> None:
    module = committing()
    with pytest.raises(UserError, match=r"PromptSelection: model\.pilot_commit chooses prompts, too"):
        tiny_loop(tmp_path / "run", module, callbacks=[PromptSelection(RandomPrompts())]).fit()
    assert module.iteration == 0
