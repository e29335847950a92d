"""One PPO iteration, stage after stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.nonfinite import without_broken
from ippo_lightning.engine.settings import PPOSettings
from ippo_lightning.engine.update import UpdateStages, run_update
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import Episodes, UpdatePlan, UpdateStats

_Result = TypeVar("_Result")


class PPOStages(UpdateStages, Protocol):
    """What a module brings to an iteration; each stage can be overridden by itself."""

    def rollout(self, batch: Any) -> Episodes:
        """Sample responses to a batch of prompts and score them."""

    def compute_rewards(self, episodes: Episodes) -> Episodes:
        """Fill `outcome_rewards` and the shaped `rewards`."""

    def compute_advantages(self, episodes: Episodes) -> Episodes:
        """Fill `advantages` and `returns`."""


def run_iteration(
    stages: PPOStages,
    batch: Any,
    *,
    settings: PPOSettings,
    iteration: int,
    callbacks: Iterable[object] = (),
    trainer: object = None,
) -> UpdateStats:
    """Run one iteration: roll out, reward, estimate advantages, let callbacks plan, update.

    Args:
        stages: usually a `PPOModule`.
        batch: what `stages.rollout` takes.
        settings: of the update.
        iteration: counted from 0, for the records.
        callbacks: get `on_rollout_start`, `on_rollout_end` and `on_update_end` if they have them.
        trainer: handed to the callbacks: a `lightning.Trainer` or a `FabricLoop`.

    Returns:
        What happened, with metrics summed over all ranks.
    """
    callbacks = list(callbacks)
    seconds: dict[str, float] = {}
    call_hook(callbacks, "on_rollout_start", trainer, stages)
    # 1. sample, and score under policy, reference and critic
    sampled = _timed(seconds, "rollout", lambda: stages.rollout(batch))
    episodes = without_broken(sampled, ("log_probs", "ref_log_probs", "values"), rule=settings.on_nonfinite)
    # 2. ask the grader, add the KL penalty
    episodes = _timed(seconds, "reward", lambda: stages.compute_rewards(episodes))
    episodes = without_broken(episodes, ("outcome_rewards", "rewards"), rule=settings.on_nonfinite)
    # 3. generalised advantage estimation
    episodes = stages.compute_advantages(episodes)
    # 4. callbacks decide what each episode is worth
    plan = UpdatePlan(episodes=episodes)
    _timed(seconds, "plan", lambda: call_hook(callbacks, "on_rollout_end", trainer, stages, plan))
    plan.sealed = True
    # 5. epochs of minibatches
    outcome = _timed(seconds, "update", lambda: run_update(stages, plan, settings))
    metrics = {
        **rollout_metrics(episodes),
        "rollout/nonfinite_episodes": float(all_reduce_sum(torch.tensor(float(len(sampled) - len(episodes))))),
        **outcome.metrics,
        "update/kept_fraction": outcome.kept_fraction,
        "update/optimizer_steps": float(outcome.optimizer_steps),
        **plan.metrics,
        **{f"time/{stage}_seconds": taken for stage, taken in seconds.items()},
    }
    stats = UpdateStats(
        iteration=iteration,
        episodes=episodes,
        plan=plan,
        kept_fraction=outcome.kept_fraction,
        optimizer_steps=outcome.optimizer_steps,
        metrics=metrics,
    )
    call_hook(callbacks, "on_update_end", trainer, stages, stats)
    return stats


def rollout_metrics(episodes: Episodes) -> dict[str, float]:
    """Return what was collected, averaged over the episodes of all ranks."""
    mask = episodes.response_mask
    sums = torch.stack(
        [
            mask.new_tensor(len(episodes), dtype=torch.float64),
            episodes.outcome_rewards.double().sum(),
            episodes.lengths.double().sum(),
            episodes.truncated.double().sum(),
            ((episodes.log_probs - episodes.ref_log_probs).double() * mask).sum(),
            masked_row_mean(values=episodes.values, mask=mask).double().sum(),
        ]
    )
    count, reward, tokens, truncated, kl, value = all_reduce_sum(sums).tolist()
    return {
        "rollout/episodes": count,
        "rollout/reward_mean": reward / count,
        "rollout/response_tokens_mean": tokens / count,
        "rollout/truncated_fraction": truncated / count,
        "rollout/kl": kl / count,
        "rollout/value_mean": value / count,
    }


def _timed(seconds: dict[str, float], stage: str, action: Callable[[], _Result]) -> _Result:
    start = time.perf_counter()
    result = action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # work still queued belongs to this stage
    seconds[stage] = time.perf_counter() - start
    return result
