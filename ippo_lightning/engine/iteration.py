"""One iteration, stage after stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch

from ippo_lightning.distributed.collectives import all_reduce_sum, any_rank
from ippo_lightning.engine.chosen_groups import ChosenGroups
from ippo_lightning.engine.dynamic_sampling import DynamicSampling, Reserve, fill_groups
from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.minibatch_plans import minibatch_hook
from ippo_lightning.engine.nonfinite import OnNonfinite, without_broken
from ippo_lightning.engine.pilot_commit import PilotCommit, commit
from ippo_lightning.engine.random_streams import own_streams
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.engine.update import UpdateStages, run_update
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import Episodes, RolloutPlan, UpdatePlan, UpdateStats

Record = TypeVar("Record", bound=Episodes)
_Result = TypeVar("_Result")


class IterationStages(UpdateStages, Protocol[Record]):
    """What a module brings to an iteration; each stage can be overridden alone."""

    def plan_rollout(self, batch: Any) -> RolloutPlan:
        """Return what is to be sampled; callbacks may change it.

        Args:
            batch: what the data loader gave.
        """

    def rollout(self, plan: RolloutPlan) -> Record:
        """Sample, and score what was sampled under policy, reference and critic."""

    def compute_rewards(self, episodes: Record) -> Record:
        """Fill `outcome_rewards` and the shaped `rewards`."""

    def compute_advantages(self, episodes: Record) -> Record:
        """Fill `advantages` and `returns`."""


def run_iteration(
    stages: IterationStages[Record],
    batch: Any,
    *,
    settings: UpdateSettings,
    iteration: int,
    callbacks: Iterable[object] = (),
    trainer: object = None,
    dynamic_sampling: DynamicSampling | None = None,
    pilot_commit: PilotCommit | None = None,
) -> UpdateStats:
    """Run one iteration: roll out, reward, estimate advantages, let callbacks plan, update.

    Args:
        stages: usually a `PPOModule`.
        batch: what `stages.plan_rollout` takes.
        settings: of the update.
        iteration: counted from 0, for the records.
        callbacks: their `on_rollout_start`, `on_rollout_end`, `on_minibatch_start` and `on_update_end` are called, if
            they have them.
        trainer: what callbacks get as their trainer: a `lightning.Trainer` or a `FabricLoop`.
        dynamic_sampling: replaces prompts whose rewards are all equal; None to train on each prompt of the batch.
        pilot_commit: gives most responses to the prompts whose rewards vary most; None for as many to each prompt. Not
            together with `dynamic_sampling`.

    Returns:
        What happened, with metrics summed over all ranks.
    """
    # A generator would be empty after the first hook.
    callbacks = list(callbacks)
    trains_policy = iteration >= settings.critic_warmup_iterations
    reserve = None if dynamic_sampling is None else Reserve(batch, dynamic_sampling)
    # 1. callbacks decide how many responses each prompt gets
    rollout_plan = stages.plan_rollout(batch if reserve is None else reserve.first)
    call_hook(callbacks, "on_rollout_start", trainer, stages, rollout_plan)
    # 2. sample, and score under policy, reference and critic; 3. call the reward, subtract the KL penalty
    collector = _Collector(stages, settings.on_nonfinite)
    seconds = collector.seconds
    chosen: ChosenGroups[Record] | None = None
    if pilot_commit is not None:
        chosen = commit(rollout_plan, collector, settings=pilot_commit, iteration=iteration)
    else:
        episodes = collector(rollout_plan)
    # With rewards and before advantages, whose moments are then those of what is trained on. A critic that learns alone
    # learns from each prompt.
    if dynamic_sampling is not None and reserve is not None and trains_policy:
        chosen = fill_groups(
            episodes,
            reserve,
            lambda more: collector(stages.plan_rollout(more), may_be_empty=True),
            wanted=int((rollout_plan.counts > 0).sum()),
            max_rounds=dynamic_sampling.max_rounds,
        )
    if chosen is not None:
        episodes = chosen.episodes
    # 4. estimate advantages: without NaN, which whitening would spread to every episode of every rank, and before any
    # callback, so that what is dropped does not change the baseline of what stays. A fragment of an environment becomes
    # as many rows as it has steps.
    estimated = stages.compute_advantages(episodes)
    # Finite rewards can have sums that are not.
    episodes = without_broken(estimated, ("advantages",), rule=settings.on_nonfinite)
    collector.left_out += len(estimated) - len(episodes)
    # 5. callbacks decide what each episode is worth
    plan = UpdatePlan(episodes=episodes, trains_policy=trains_policy)
    if chosen is not None and any_rank(chosen.is_placeholder, device=episodes.device):
        # On all ranks, so that their histories have the same changes.
        plan.drop(torch.full_like(plan.keep, chosen.is_placeholder), reason="equal rewards")
    if settings.mask_truncated:
        # Before the callbacks, which then see what the update would train on.
        plan.drop(episodes.truncated, reason="truncated")
    _timed(seconds, "plan", lambda: call_hook(callbacks, "on_rollout_end", trainer, stages, plan))
    if plan.layers is not None:
        raise UserError("plan.choose_by_layer: it is about one optimizer step; call it in on_minibatch_start")
    plan.sealed = True
    random = own_streams()
    # 6. epochs of minibatches
    on_minibatch = minibatch_hook(callbacks, trainer, stages)
    outcome = _timed(seconds, "update", lambda: run_update(stages, plan, settings, on_minibatch=on_minibatch))
    # Also of what is not trained on: the policy is not only as good as where it is sometimes right.
    sampled = episodes if chosen is None else chosen.sampled
    collected = rollout_metrics(sampled)
    metrics = {
        **collected,
        "rollout/nonfinite_episodes": float(all_reduce_sum(torch.tensor(float(collector.left_out)))),
        **({} if chosen is None else chosen.metrics),
        **outcome.metrics,
        "update/kept_fraction": outcome.kept_fraction,
        "update/optimizer_steps": float(outcome.optimizer_steps),
        **({"update/critic_only": float(not plan.trains_policy)} if settings.critic_warmup_iterations else {}),
        **plan.metrics,
        **{f"time/{stage}_seconds": taken for stage, taken in seconds.items()},
    }
    stats = UpdateStats(
        iteration=iteration,
        episodes=episodes,
        sampled=sampled,
        plan=plan,
        num_episodes=int(collected["rollout/episodes"]),
        kl=collected["rollout/kl"],
        kept_fraction=outcome.kept_fraction,
        optimizer_steps=outcome.optimizer_steps,
        tokens_trained=outcome.tokens_trained,
        metrics=metrics,
        random=random,
    )
    call_hook(callbacks, "on_update_end", trainer, stages, stats)
    return stats


@dataclass
class _Collector(Generic[Record]):
    """Stages 2 and 3 of an iteration, which dynamic sampling and pilots repeat."""

    stages: IterationStages[Record]
    rule: OnNonfinite
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, of all calls."""
    left_out: int = 0
    """Episodes of this rank that were not finite."""

    def __call__(self, plan: RolloutPlan, *, may_be_empty: bool = False) -> Record:
        """Return the episodes of a plan with their rewards, without those that are not finite.

        Args:
            plan: sealed from here on.
            may_be_empty: see `without_broken`.
        """
        plan.sealed = True
        sampled = _timed(self.seconds, "rollout", lambda: self.stages.rollout(plan))
        finite = partial(without_broken, rule=self.rule, may_be_empty=may_be_empty)
        episodes = finite(sampled, ("log_probs", "ref_log_probs", "values"))
        if len(episodes):
            scored = episodes
            rewarded = _timed(self.seconds, "reward", lambda: self.stages.compute_rewards(scored))
            episodes = finite(rewarded, ("outcome_rewards", "rewards"))
        self.left_out += len(sampled) - len(episodes)
        return episodes


def rollout_metrics(episodes: Episodes) -> dict[str, float]:
    """Return numbers of what was collected, means over the episodes of all ranks; `rollout/kl` in nats per episode.

    Args:
        episodes: of this rank, at least one.
    """
    mask = episodes.mask
    # Sums of all ranks, and then one division: ranks may have different numbers of episodes.
    sums = torch.stack(
        [
            mask.new_tensor(len(episodes), dtype=torch.float64),
            episodes.outcome_rewards.double().sum(),
            episodes.lengths.double().sum(),
            episodes.truncated.double().sum(),
            # Always k1, the log-ratio itself, whatever the estimator of the penalty; the adaptive controller reads it.
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
        torch.cuda.synchronize()  # queued work belongs to this stage, not to the next one
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
    return result
