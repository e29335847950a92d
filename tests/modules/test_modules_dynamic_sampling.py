"""A run with dynamic sampling: what it trains on, counts and says, and how it goes on after an interruption."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from training_parts import BrokenFirst, same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.algorithms import GroupBaseline
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.engine import DynamicSampling
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import LoraSettings, SamplingSettings
from ippo_lightning.records import UpdateStats
from ippo_lightning.rewards import CombinedReward

THREE = DynamicSampling(num_prompts=3, max_rounds=2)
"""Of batches of eight: five are in reserve."""
ROUNDING = 1e-5
"""Means of a few rewards in float32."""


def every_third_prompt(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """The number of characters of the responses to every third prompt, and one for all others."""
    return [
        1.0 if sum(map(ord, prompt)) % 3 else 0.1 * len(response)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def always_one(prompts: Any, responses: Any, examples: Any) -> list[float]:
    return [1.0] * len(prompts)


def filling(**changes: Any) -> Any:
    return critic_free_module("dapo", **{"reward": every_third_prompt, "dynamic_sampling": THREE, **changes})


def rows_of(loop: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = loop.folder.read_rows("history.jsonl")
    return rows


def run(folder: Path, module: Any, **changes: Any) -> UpdateStats:
    tiny_loop(folder, module, **changes).fit()
    assert module.last_stats is not None
    return module.last_stats


def test_an_iteration_trains_on_groups_with_different_rewards_and_counts_all_of_them(tmp_path: Path) -> None:
    module = filling()
    loop = tiny_loop(tmp_path / "run", module, max_iterations=1)
    loop.fit()
    stats = module.last_stats
    rewards, group = stats.episodes.outcome_rewards, stats.episodes.group
    assert stats.metrics["dynamic_sampling/rounds"] > 0, "the case needs refills"
    for number in group.unique():
        rows = group == number
        assert int(rows.sum()) == 2
        assert len(rewards[rows].unique()) == 2
        assert float(stats.episodes.advantages[rows, 0].sum()) == pytest.approx(0.0, abs=ROUNDING)
    everything = stats.sampled
    assert len(everything) > len(stats.episodes)
    assert module.episodes_seen == stats.num_episodes == len(everything) == stats.metrics["rollout/episodes"]
    assert stats.metrics["dynamic_sampling/prompts"] == len(everything.group.unique()) == len(everything) / 2
    assert stats.metrics["rollout/reward_mean"] == pytest.approx(float(everything.outcome_rewards.mean()), rel=ROUNDING)
    equal = stats.metrics["dynamic_sampling/groups_dropped"]
    assert rows_of(loop)[0]["rollout/zero_variance_fraction"] == equal / stats.metrics["dynamic_sampling/prompts"]
    assert len(set(everything.prompts)) == len(everything) / 2, "each prompt is another one"


@pytest.mark.parametrize(("rounds", "limit"), [(2, "max_rounds: 2"), (9, "the batch has no more prompts")])
def test_where_every_reward_is_equal_the_run_ends_trains_nothing_and_says_so_once(
    rounds: int, limit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = filling(reward=always_one, dynamic_sampling=DynamicSampling(num_prompts=3, max_rounds=rounds))
    before = trainable(module)
    loop = tiny_loop(tmp_path / "run", module, max_iterations=3)
    with caplog.at_level(logging.WARNING):
        loop.fit()
    assert same(before, trainable(module))
    assert [row["update/optimizer_steps"] for row in rows_of(loop)] == [0, 0, 0]
    assert [row["update/kept_fraction"] for row in rows_of(loop)] == [0, 0, 0]
    assert [row["dynamic_sampling/filled_fraction"] for row in rows_of(loop)] == [0, 0, 0]
    assert [row["rollout/zero_variance_fraction"] for row in rows_of(loop)] == [1, 1, 1]
    assert module.last_stats.plan.history[0].reason == "equal rewards"
    said = [record.getMessage() for record in caplog.records if "dynamic_sampling" in record.getMessage()]
    assert len(said) == 1
    assert "iteration 0 trains on none of the prompts that it wants" in said[0]
    assert limit in said[0]


def test_an_iteration_that_is_filled_in_part_goes_on_with_what_there_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def one_prompt(prompts: Any, responses: Any, examples: Any) -> list[float]:
        return [float(row) if prompt == prompts[0] else 1.0 for row, prompt in enumerate(prompts)]

    settings = DynamicSampling(num_prompts=4, max_rounds=1)
    module = critic_free_module("grpo", reward=one_prompt, dynamic_sampling=settings)
    with caplog.at_level(logging.WARNING):
        stats = run(tmp_path / "run", module)
    assert stats.metrics["dynamic_sampling/filled_fraction"] == 0.5, "one prompt of the first call, one of the second"
    assert stats.optimizer_steps > 0
    said = [record.getMessage() for record in caplog.records if "dynamic_sampling" in record.getMessage()]
    assert len(said) == 1
    assert "iteration 0 trains on 50% of the prompts" in said[0]


def test_a_filled_iteration_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def by_row(prompts: Any, responses: Any, examples: Any) -> list[float]:
        return [float(row) for row in range(len(prompts))]

    stats = run(tmp_path / "run", filling(reward=by_row), max_iterations=1)
    assert stats.metrics["dynamic_sampling/rounds"] == 0
    assert stats.metrics["dynamic_sampling/filled_fraction"] == 1
    assert not caplog.records


def test_a_resumed_run_equals_an_unbroken_one_bit_by_bit(tmp_path: Path) -> None:
    whole, broken, resumed = filling(), filling(), filling()
    loop = tiny_loop(tmp_path / "whole", whole, max_iterations=5)  # four batches to an epoch
    loop.fit()
    assert sum(row["dynamic_sampling/rounds"] > 0 for row in rows_of(loop)[3:]) > 0, "refills come after the break"
    tiny_loop(tmp_path / "broken", broken, max_iterations=3).fit()
    tiny_loop(tmp_path / "broken", resumed, max_iterations=5, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))
    assert whole.progress_state() == resumed.progress_state()


def test_trainer_gives_what_the_loop_gives_also_after_a_resume(tmp_path: Path) -> None:
    def trained(module: Any, steps: int, **resume: Any) -> Any:
        seed_everything(5)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=-1,
            max_epochs=steps,
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0)],
        )
        trainer.fit(module, datamodule=tiny_data(), **resume)
        return module

    by_loop = filling()
    tiny_loop(tmp_path / "run", by_loop, max_iterations=8).fit()
    whole = trained(filling(), 2)
    assert same(trainable(by_loop), trainable(whole))
    trained(filling(), 1)
    resumed = trained(filling(), 2, ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert same(trainable(whole), trainable(resumed))
    assert whole.episodes_seen == resumed.episodes_seen > 8 * 3 * 2
    checkpoint = tmp_path / "kept" / "last.ckpt"
    rebuilt = PPOModule.load_from_checkpoint(checkpoint, reward=every_third_prompt)
    assert rebuilt.dynamic_sampling == THREE


COMPOSED: dict[str, dict[str, Any]] = {
    "leave one out": {"name": "rloo"},
    "Dr. GRPO": {"name": "dr_grpo"},
    "scale of the batch": {"advantages": GroupBaseline(scale="batch")},
    "adapter": {"policy": lambda: tiny_policy(value="none", lora=LoraSettings(r=2))},
    "continuous batching": {"sampling": SamplingSettings(num_responses=2, max_new_tokens=8, sampler="continuous")},
    "small passes": {"update": {"max_tokens": 40, "micro_batch_size": 2}},
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case == "continuous batching" else ()) for case in COMPOSED],
)
def test_dynamic_sampling_goes_with(case: str, tmp_path: Path) -> None:
    changes = dict(COMPOSED[case])
    policy = changes.pop("policy", None)
    name = changes.pop("name", "grpo")
    module = critic_free_module(
        name,
        **{"reward": every_third_prompt, "dynamic_sampling": THREE, **changes},
        **({} if policy is None else {"policy": policy()}),
    )
    before = trainable(module)
    stats = run(tmp_path / "run", module)
    assert stats.metrics["dynamic_sampling/rounds"] > 0
    assert len(stats.episodes) == 2 * 3 * stats.metrics["dynamic_sampling/filled_fraction"]
    assert not same(before, trainable(module))


def test_a_critic_learns_from_what_is_kept_and_alone_from_each_prompt(tmp_path: Path) -> None:
    module = tiny_module(reward=every_third_prompt, dynamic_sampling=THREE, update={"critic_warmup_iterations": 1})
    loop = tiny_loop(tmp_path / "run", module)
    loop.fit()
    warm, trained = rows_of(loop)
    assert "dynamic_sampling/rounds" not in warm
    assert warm["rollout/episodes"] == 6, "the first prompts of the batch, with two responses each"
    assert trained["dynamic_sampling/rounds"] > 0
    assert module.last_stats.episodes.values.abs().sum() > 0


def test_a_filter_of_whole_groups_sees_what_is_kept_and_cut_responses_leave_the_loss(tmp_path: Path) -> None:
    module = filling(update={"mask_truncated": True})
    stats = run(tmp_path / "run", module, callbacks=[InfluenceFilter(whole_groups="sum", min_keep=1)])
    assert {change.reason for change in stats.plan.history} >= {"truncated"}
    assert len(stats.plan.weights) == len(stats.episodes) < len(stats.sampled)
    assert not bool(stats.plan.keep[stats.episodes.truncated].any())


def test_broken_rewards_are_skipped_in_each_round(tmp_path: Path) -> None:
    reward = BrokenFirst(every_third_prompt)
    module = filling(reward=reward, update={"on_nonfinite": "skip"})
    stats = run(tmp_path / "run", module, max_iterations=1)
    assert len(reward.calls) > 1
    assert stats.metrics["rollout/nonfinite_episodes"] == len(reward.calls)
    assert len(stats.sampled) == sum(reward.calls) - len(reward.calls)
    assert bool(torch.isfinite(stats.sampled.outcome_rewards).all())


def test_a_round_that_is_broken_as_a_whole_is_skipped_too(tmp_path: Path) -> None:
    calls: list[int] = []

    def only_the_first_call(prompts: Any, responses: Any, examples: Any) -> list[float]:
        calls.append(len(prompts))
        return [1.0 if len(calls) == 1 else math.nan] * len(prompts)

    module = filling(reward=only_the_first_call, update={"on_nonfinite": "skip"})
    stats = run(tmp_path / "run", module, max_iterations=1)
    assert calls == [6, 6, 4]
    assert stats.metrics["rollout/nonfinite_episodes"] == 10
    assert (len(stats.sampled), stats.optimizer_steps) == (6, 0)


def test_the_parts_of_a_reward_are_means_over_all_rounds(tmp_path: Path) -> None:
    module = filling(reward=CombinedReward({"third": every_third_prompt}))
    stats = run(tmp_path / "run", module, max_iterations=1)
    row = tiny_loop(tmp_path / "run", filling(), resume=True, max_iterations=1).folder.read_rows("history.jsonl")[0]
    assert stats.metrics["dynamic_sampling/rounds"] > 0
    assert row["rollout/reward/third"] == pytest.approx(row["rollout/reward_mean"], rel=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sampling": SamplingSettings(num_responses=1), "policy": None},
            r"sampling\.num_responses: 1, and dynamic_sampling compares .* expected at least 2",
        ),
        ({"dynamic_sampling": {"num_prompts": 3}}, r"model\.dynamic_sampling: got dict; expected DynamicSampling"),
    ],
)
def test_a_module_that_cannot_compare_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_module(**{"dynamic_sampling": THREE, **changes})


@pytest.mark.parametrize("num_prompts", [8, 9])
def test_a_batch_without_reserve_is_refused_before_the_first_iteration(num_prompts: int, tmp_path: Path) -> None:
    module = filling(dynamic_sampling=DynamicSampling(num_prompts=num_prompts))
    loop = tiny_loop(tmp_path / "run", module)
    with pytest.raises(UserError, match=rf"data\.batch_size: 8 leaves no prompt .* trains on {num_prompts} per"):
        loop.fit()
