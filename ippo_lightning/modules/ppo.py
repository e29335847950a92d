"""PPO for language models: override one of rollout, rewards, advantages or loss, and leave the rest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ippo_lightning.algorithms import (
    GAE,
    AdaptiveKLController,
    AdvantageEstimator,
    ClippedLoss,
    FixedKLController,
    PolicyLoss,
    ValueLoss,
)
from ippo_lightning.engine import DynamicSampling, PilotCommit, UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.maths import KLEstimator, kl_estimate, shape_rewards
from ippo_lightning.modules.critic_warmup import CriticWarmup, require_critic
from ippo_lightning.modules.dynamic_sampling import check_dynamic_sampling, check_reserve
from ippo_lightning.modules.forward_reads import ForwardReads
from ippo_lightning.modules.group_metrics import group_metrics
from ippo_lightning.modules.loss_outputs import (
    Reduction,
    checked_terms,
    require_coefficients,
    require_parts,
    sums_for_log,
)
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.pilot_commit import check_offered, check_pilot_commit
from ippo_lightning.modules.sampler_gap import check_importance_cap, gap_metrics, importance_weighted
from ippo_lightning.modules.standard_parts import PPO_PARTS
from ippo_lightning.modules.text import TextModule
from ippo_lightning.policies import CausalLMPolicy, PolicyOutput, SamplingSettings
from ippo_lightning.records import Batch, Minibatch, RolloutPlan, TextEpisodes, UpdateStats
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.rewards import HeldReward, Reward, grade_reward
from ippo_lightning.rollouts import collect_episodes
from ippo_lightning.tasks import Grader


class PPOModule(CriticWarmup, ForwardReads, TextModule):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of a language model.

    One `training_step` takes a batch of prompts through a full iteration: `rollout`, `compute_rewards`,
    `compute_advantages`, the callbacks' `on_rollout_end`, then epochs of `minibatch_loss`. The policy loss is defined
    once, in `loss_terms`: training and influence scores read it there.

    Args:
        policy: see `TextModule`; its value head or critic gives the baseline.
        reward: called with prompts, responses and examples; returns one finite number per episode. None for the
            grade: 1.0 for a right response, else 0.0.
        reward_timeout: seconds after which a call of the reward ends the run with an error; None for no limit.
        grader: see `TextModule`.
        sampling: how episodes are sampled.
        evaluation: see `TextModule`; by default the same as `sampling`.
        update: epochs, sizes, and what filtering does.
        advantages: the advantage estimator; `GAE` by default.
        loss: the policy loss; `ClippedLoss` by default.
        value_loss: the critic's loss.
        entropy_coef: weight of the entropy bonus, >= 0.
        importance_cap: multiply each step's policy loss by min(policy / sampler, cap), >= 1; None for no such weight.
        missing_eos_penalty: subtracted from the reward of a response that never stopped, >= 0.
        kl_controller: has the coefficient of the KL penalty to the reference, in the reward.
        kl_estimator: of that penalty: `k1` is the log-ratio itself.
        optimizer: see `BaseModule`.
        evaluation_seed: see `TextModule`.
        dynamic_sampling: replace prompts whose responses all have the same reward; None to train on each prompt.
        pilot_commit: give most responses to the prompts whose rewards vary most; None for as many to each prompt.

    Raises:
        UserError: a number out of its range, greedy sampling, a critic that the advantage estimator does not use, or
            one response per prompt with `dynamic_sampling` or `pilot_commit`, which do not go together either.
    """

    standard_parts = PPO_PARTS
    sampling: SamplingSettings

    def __init__(
        self,
        *,
        policy: CausalLMPolicy,
        reward: Reward | None = None,
        reward_timeout: float | None = None,
        grader: Grader | None = None,
        sampling: SamplingSettings | None = None,
        evaluation: SamplingSettings | None = None,
        update: UpdateSettings | None = None,
        advantages: AdvantageEstimator | None = None,
        loss: PolicyLoss | None = None,
        value_loss: ValueLoss | None = None,
        entropy_coef: float = 0.0,
        importance_cap: float | None = None,
        missing_eos_penalty: float = 0.0,
        kl_controller: FixedKLController | AdaptiveKLController | None = None,
        kl_estimator: KLEstimator = "k1",
        optimizer: OptimizerSettings | None = None,
        evaluation_seed: int = 0,
        dynamic_sampling: DynamicSampling | None = None,
        pilot_commit: PilotCommit | None = None,
    ) -> None:
        own_sampling = sampling or SamplingSettings()
        own_sampling.require_random("model.sampling")
        super().__init__(
            policy=policy,
            grader=grader,
            evaluation=evaluation or own_sampling,
            optimizer=optimizer,
            evaluation_seed=evaluation_seed,
        )
        require_coefficients(entropy_coef, missing_eos_penalty, kl_estimator)
        check_importance_cap(importance_cap, own_sampling, own_rollout=type(self).rollout is not PPOModule.rollout)
        check_dynamic_sampling(dynamic_sampling, own_sampling)
        check_pilot_commit(pilot_commit, own_sampling, dynamic_sampling=dynamic_sampling)
        self.dynamic_sampling, self.pilot_commit = dynamic_sampling, pilot_commit
        self._reward: HeldReward | None = None
        self.reward_timeout = reward_timeout
        self.reward = reward
        self.sampling = own_sampling
        self.update_settings = update or UpdateSettings()
        self.pass_size = PassSize(self.update_settings.max_tokens, field="update.max_tokens")
        self.advantages = advantages or GAE()
        self.loss, self.value_loss = loss or ClippedLoss(), value_loss or ValueLoss()
        self.entropy_coef, self.importance_cap = entropy_coef, importance_cap
        self.missing_eos_penalty = missing_eos_penalty
        self.kl_controller = kl_controller or FixedKLController(coef=0.05)
        self.kl_estimator: KLEstimator = kl_estimator
        require_parts(self.loss, self.advantages, loss_reads=self.loss_reads, policy=policy, sampling=own_sampling)
        require_critic(self.update_settings, self.value_loss, has_values=policy.has_values)

    @property
    def reward(self) -> HeldReward:
        """The reward function: the one given, else 1.0 for a right response by the grader and 0.0 for a wrong one.

        Raises:
            UserError: there is neither a reward nor a grader.
        """
        if self._reward is None:
            if self.grader is None:
                raise UserError("model.reward: null, and there is no grader whose grade could be the reward; set one")
            self._reward = HeldReward(grade_reward(self.grader), timeout=self.reward_timeout)
        return self._reward

    @reward.setter
    def reward(self, reward: Reward | None) -> None:
        # in a plain object: a reward that is an nn.Module is neither trained nor saved with the policy
        is_bare = reward is not None and not isinstance(reward, HeldReward)
        held = HeldReward(cast(Reward, reward), timeout=self.reward_timeout) if is_bare else reward
        self._reward = cast(HeldReward | None, held)

    def use_data(self, datamodule: object) -> None:
        """Take grader and reward from the data module's task if none was given; see `TextModule.use_data`."""
        super().use_data(datamodule)
        check_reserve(self.dynamic_sampling, datamodule)
        check_offered(self.pilot_commit, datamodule)
        parts = self.dynamic_sampling or self.pilot_commit
        if parts is not None and self._training_rows is not None:
            size = self._training_rows // self.sampling.num_responses
            self._training_rows = parts.most_rows(size, num_responses=self.sampling.num_responses)
        if datamodule is not None:
            _ = self.reward  # a run without any reward stops here, before its first iteration

    def after_update(self, stats: UpdateStats) -> tuple[dict[str, float], int]:
        """Move the KL controller; return its numbers, and those of sampler, groups and reward.

        Args:
            stats: see `PolicyIterations`.
        """
        # Logged before it moves: this is the coefficient that the rewards of this iteration were made with.
        coef = self.kl_controller.coef
        if not self.is_critic_warmup:
            self.kl_controller.update(kl=stats.kl, num_episodes=stats.num_episodes)
        numbers = {
            **gap_metrics(stats.sampled, self.sampling),
            **group_metrics(stats.sampled, self.advantages),
            **(self._reward.take_metrics() if self._reward is not None else {}),
            "rollout/kl_coef": coef,
        }
        return numbers, stats.num_episodes

    # --- the stages: override one, leave the rest ----------------------------------------------------

    def plan_rollout(self, batch: Batch) -> RolloutPlan:
        """Return the plan of a batch of prompts: `sampling.num_responses` responses to each."""
        counts = torch.full((len(batch["prompts"]),), self.sampling.num_responses)
        return RolloutPlan(batch=batch, counts=counts)

    def rollout(self, plan: RolloutPlan) -> TextEpisodes:
        """Sample the planned responses and score them under policy, reference and critic."""
        return collect_episodes(
            self.policy,
            prompts=plan.batch["prompts"],
            examples=plan.batch["examples"],
            counts=plan.counts,
            sampling=self.sampling,
            micro_batch_size=self.update_settings.micro_batch_size,
            size=self.pass_size,
        )

    def compute_rewards(self, episodes: TextEpisodes) -> TextEpisodes:
        """Fill `outcome_rewards` [rows] and `rewards` [rows, steps], both in units of the reward.

        `rewards` is the outcome on the last step, minus the KL penalty of each step (see `shape_rewards`).
        """
        texts = (episodes.prompts, episodes.responses, episodes.examples)
        skip = self.update_settings.on_nonfinite == "skip"
        # the reward is called once per round, or for pilots and for the rest
        joins = self.dynamic_sampling is not None or self.pilot_commit is not None
        outcome = self.reward(*texts, allow_nonfinite=skip, episodes=episodes, grader=self.grader, joins_parts=joins)
        outcome = outcome.to(episodes.log_probs)
        # In the reward and not in the loss, so no gradient flows through it, and any estimator may be used.
        kl = kl_estimate(
            log_probs=episodes.log_probs, ref_log_probs=episodes.ref_log_probs, estimator=self.kl_estimator
        )
        rewards = shape_rewards(
            outcome_rewards=outcome,
            kl=kl,
            kl_coef=self.kl_controller.coef,
            mask=episodes.mask,
            truncated=episodes.truncated,
            missing_eos_penalty=self.missing_eos_penalty,
        )
        return episodes.evolve(outcome_rewards=outcome, rewards=rewards)

    def compute_advantages(self, episodes: TextEpisodes) -> TextEpisodes:
        """Fill `advantages` and `returns`, both [rows, steps] and 0.0 where the mask is False, by the estimator."""
        return self.advantages(episodes)

    # --- the loss, defined once ----------------------------------------------------------------------

    def score(
        self,
        episodes: TextEpisodes,
        *,
        with_values: bool = False,
        with_entropy: Literal["differentiable", "detached"] | bool = False,
    ) -> PolicyOutput:
        """Return what the policy computes for episodes at the current parameters, with its graph.

        Args:
            episodes: sampled.
            with_values: also the critic's values.
            with_entropy: also the entropy: `differentiable` (or True), or the cheaper `detached`.
        """
        output: PolicyOutput = self.policy(
            episodes.prompt_ids,
            episodes.prompt_mask,
            episodes.response_ids,
            episodes.response_mask,
            temperature=self.sampling.temperature,
            with_values=with_values,
            with_entropy=with_entropy,
        )
        return output

    def loss_terms(self, output: PolicyOutput, episodes: TextEpisodes) -> Tensor:
        """Return the policy loss of each step, shape [rows, steps]: the one method that an algorithm overrides.

        The minibatch loss, the exact scores and the scores of one forward all read it. What it reads of `output`
        besides `log_probs` must be listed in `loss_reads`.

        Args:
            output: what `score` returned, or what is stored of the rollout.
            episodes: with `log_probs` of the policy that sampled, `ref_log_probs` and `advantages`.
        """
        return self.loss.terms(output, episodes)

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch, shape [], and sums for the log.

        Args:
            minibatch: episodes, the weights of their losses, and the denominators of the whole optimizer step, so
                that micro-batches and ranks add up to the loss of the full minibatch.
        """
        episodes = cast(TextEpisodes, minibatch.episodes)
        # A detached entropy is only for the log, and its softmax is not kept for the backward.
        needs_gradient = self.entropy_coef > 0 or "entropy" in self._reads
        output = self.score(
            episodes,
            with_values=self.policy.has_values,
            with_entropy="differentiable" if needs_gradient else "detached",
        )

        reduced = partial(Reduction.of(self).of_minibatch, mask=episodes.mask)
        policy_loss = reduced(self._terms(output, episodes), minibatch.weights, minibatch.policy_denominator)
        assert output.entropy is not None, "requested above"
        entropy = reduced(output.entropy, minibatch.value_weights, minibatch.value_denominator)
        value_loss = torch.zeros_like(policy_loss)
        if output.values is not None:
            terms = self.value_loss.terms(output.values, episodes)
            value_loss = reduced(terms, minibatch.value_weights, minibatch.value_denominator)
        loss = policy_loss + self.value_loss.coef * value_loss - self.entropy_coef * entropy
        sums = sums_for_log(output, minibatch, loss=self.loss)
        loss = self.loss_of_iteration(loss, value_loss)
        return loss, {**sums, "policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    # --- what the influence callback scores ----------------------------------------------------------

    def episode_losses(self, episodes: TextEpisodes) -> Tensor:
        """Return the policy loss of each episode at the current parameters, shape [rows], with its graph.

        Reduced by `loss_reduction`. The episodes need `advantages`, and `log_probs` of the policy that sampled.
        """
        output = self.score(episodes, with_values="values" in self._reads, with_entropy="entropy" in self._reads)
        return Reduction.of(self).of_rows(self._terms(output, episodes), episodes)

    def rollout_losses(self, episodes: TextEpisodes) -> Tensor | None:
        """Return what `episode_losses` is at the parameters that sampled, shape [rows], without a forward.

        None if `loss_terms` reads the entropy, which a rollout does not store: scores then need one more forward.
        """
        if "entropy" in self._reads:
            return None
        # At the parameters that sampled, a forward would compute what the rollout has stored.
        output = PolicyOutput(log_probs=episodes.log_probs, entropy=None, values=episodes.values)
        return Reduction.of(self).of_rows(self._terms(output, episodes), episodes)

    def difference_losses(self, episodes: TextEpisodes) -> Tensor:
        """Return `episode_losses` without clipping: the step of a difference may carry ratios over a near bound."""
        loss, self.loss = self.loss, self.loss.unclipped()
        try:
            return self.episode_losses(episodes)
        finally:
            self.loss = loss

    def _terms(self, output: PolicyOutput, episodes: TextEpisodes) -> Tensor:
        terms = checked_terms(self.loss_terms, output, episodes, reads=self._reads)
        return importance_weighted(terms, episodes, self.importance_cap)

    # --- checkpoints ---------------------------------------------------------------------------------

    def progress_state(self) -> dict[str, Any]:
        """Return counters and the KL controller's state."""
        return {**super().progress_state(), "kl_controller": self.kl_controller.state_dict()}

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `progress_state` returned."""
        super().load_progress_state(state)
        self.kl_controller.load_state_dict(state["kl_controller"])
