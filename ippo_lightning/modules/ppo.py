"""PPO for language models: override one of rollout, reward, advantage or loss and leave the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.engine import PPOSettings, run_iteration
from ippo_lightning.maths import (
    AdaptiveKLController,
    FixedKLController,
    KLEstimator,
    Moments,
    kl_estimate,
    masked_moments,
    masked_row_mean,
    mean_and_variance,
    policy_loss_terms,
    reduce_terms,
    response_gae,
    shape_rewards,
    update_diagnostics,
    value_loss_terms,
    whiten,
)
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.policy_module import Grader, PolicyModule
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import Episodes, Minibatch, UpdateStats
from ippo_lightning.rewards import call_reward
from ippo_lightning.rollouts import collect_episodes

Reward = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float]]


class PPOModule(PolicyModule):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of a language model.

    One `training_step` takes a batch of prompts through a whole iteration: `rollout`, `compute_rewards`,
    `compute_advantages`, the callbacks' `on_rollout_end`, then epochs of `minibatch_loss`.

    Args:
        policy: see `PolicyModule`; its value head or critic gives the baseline.
        reward: called with prompts, responses and examples; one finite number an episode.
        grader: see `PolicyModule`.
        sampling: how episodes are sampled.
        evaluation: see `PolicyModule`; by default the same as `sampling`.
        ppo: the numbers of the update.
        kl_controller: holds the coefficient of the KL penalty to the reference.
        kl_estimator: of the penalty: `k1` is the log-ratio itself.
        optimizer: see `PolicyModule`.
        evaluation_seed: see `PolicyModule`.
    """

    loss_method = "minibatch_loss"

    def __init__(
        self,
        *,
        policy: CausalLMPolicy,
        reward: Reward,
        grader: Grader | None = None,
        sampling: SamplingSettings | None = None,
        evaluation: SamplingSettings | None = None,
        ppo: PPOSettings | None = None,
        kl_controller: FixedKLController | AdaptiveKLController | None = None,
        kl_estimator: KLEstimator = "k1",
        optimizer: OptimizerSettings | None = None,
        evaluation_seed: int = 0,
    ) -> None:
        self_sampling = sampling or SamplingSettings()
        super().__init__(
            policy=policy,
            grader=grader,
            evaluation=evaluation or self_sampling,
            optimizer=optimizer,
            evaluation_seed=evaluation_seed,
        )
        self.reward = reward
        self.sampling = self_sampling
        self.ppo = ppo or PPOSettings()
        self.kl_controller = kl_controller or FixedKLController(coef=0.05)
        self.kl_estimator: KLEstimator = kl_estimator
        self.last_stats: UpdateStats | None = None

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, float]:
        """Run one PPO iteration on a batch of prompts; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        backend = self.backend
        stats = run_iteration(
            self, batch, settings=self.ppo, iteration=self.iteration, callbacks=backend.callbacks, trainer=backend.host
        )
        coef = self.kl_controller.coef
        num_episodes = int(stats.metrics["rollout/episodes"])
        self.kl_controller.update(kl=stats.metrics["rollout/kl"], num_episodes=num_episodes)
        self.last_stats = stats
        return self.finish_iteration(
            {
                **stats.metrics,
                "rollout/kl_coef": coef,
                "update/learning_rate_factor": factor,
                "time/iteration_seconds": time.perf_counter() - start,
            },
            episodes=num_episodes,
            optimizer_steps=stats.optimizer_steps,
            tokens=int(stats.metrics["update/tokens_trained"]),
        )

    # --- the stages: override one, leave the rest ----------------------------------------------------

    def rollout(self, batch: Mapping[str, Any]) -> Episodes:
        """Sample responses to the batch's prompts and score them under policy, reference and critic."""
        return collect_episodes(
            self.policy,
            prompts=batch["prompts"],
            examples=batch["examples"],
            sampling=self.sampling,
            micro_batch_size=self.ppo.micro_batch_size,
        )

    def compute_rewards(self, episodes: Episodes) -> Episodes:
        """Fill `outcome_rewards` from the reward function and `rewards` with the KL penalty a token taken off."""
        outcome = call_reward(
            self.reward,
            prompts=episodes.prompts,
            responses=episodes.responses,
            examples=episodes.examples,
            allow_nonfinite=self.ppo.on_nonfinite == "skip",
        ).to(episodes.log_probs)
        kl = kl_estimate(
            log_probs=episodes.log_probs, ref_log_probs=episodes.ref_log_probs, estimator=self.kl_estimator
        )
        rewards = shape_rewards(
            outcome_rewards=outcome,
            kl=kl,
            kl_coef=self.kl_controller.coef,
            response_mask=episodes.response_mask,
            truncated=episodes.truncated,
            missing_eos_penalty=self.ppo.missing_eos_penalty,
        )
        return episodes.evolve(outcome_rewards=outcome, rewards=rewards)

    def compute_advantages(self, episodes: Episodes) -> Episodes:
        """Fill `advantages` (whitened over all ranks, if asked for) and `returns`."""
        advantages, returns = response_gae(
            rewards=episodes.rewards,
            values=episodes.values,
            response_mask=episodes.response_mask,
            truncated=episodes.truncated,
            gamma=self.ppo.gamma,
            gae_lambda=self.ppo.gae_lambda,
            bootstrap_truncated=self.ppo.bootstrap_truncated,
        )
        if self.ppo.whiten_advantages:
            mask = episodes.response_mask
            moments = all_reduce_sum(torch.stack(masked_moments(values=advantages, mask=mask)))
            mean, variance = mean_and_variance(Moments(*moments))
            advantages = whiten(values=advantages, mask=mask, mean=mean, variance=variance)
        return episodes.evolve(advantages=advantages, returns=returns)

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch, shape [], and sums for the log.

        Args:
            minibatch: episodes, the weights of their losses, and the denominators of the whole optimizer step, so
                that micro-batches and ranks add up to the loss of the undivided minibatch.
        """
        episodes, settings = minibatch.episodes, self.ppo
        mask = episodes.response_mask
        tokens = (episodes.prompt_ids, episodes.prompt_mask, episodes.response_ids, mask)
        output = self.policy(
            *tokens,
            temperature=self.sampling.temperature,
            with_values=self.policy.has_values,
            with_entropy="differentiable" if settings.entropy_coef > 0 else "detached",
        )

        def reduced(terms: Tensor, weights: Tensor, denominator: float) -> Tensor:
            return reduce_terms(
                terms=terms, mask=mask, weights=weights, reduction=settings.loss_reduction, denominator=denominator
            )

        policy_loss = reduced(
            policy_loss_terms(
                log_probs=output.log_probs,
                old_log_probs=episodes.log_probs,
                advantages=episodes.advantages,
                clip_range=settings.clip_range,
            ),
            minibatch.weights,
            minibatch.policy_denominator,
        )
        entropy = reduced(output.entropy, minibatch.value_weights, minibatch.value_denominator)
        value_loss = torch.zeros_like(policy_loss)
        if output.values is not None:
            terms = value_loss_terms(
                values=output.values,
                old_values=episodes.values,
                returns=episodes.returns,
                clip_range=math.inf if settings.value_clip_range is None else settings.value_clip_range,
            )
            value_loss = reduced(terms, minibatch.value_weights, minibatch.value_denominator)
        loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy
        counted = mask & (minibatch.value_weights > 0)[:, None]
        sums = update_diagnostics(
            log_probs=output.log_probs.detach(),
            old_log_probs=episodes.log_probs,
            mask=counted,
            clip_range=settings.clip_range,
        )
        sums["entropy_sum"] = (output.entropy.detach() * counted).sum()
        return loss, {**sums, "policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    # --- what the influence callback scores --------------------------------------------------------

    def episode_losses(self, episodes: Episodes) -> Tensor:
        """Return the clipped policy loss of each episode at the current parameters, shape [rows].

        Reduced as in training: the mean over an episode's tokens, or their sum where `loss_reduction` is `token_mean`.
        """
        mask = episodes.response_mask
        output = self.policy(
            episodes.prompt_ids,
            episodes.prompt_mask,
            episodes.response_ids,
            mask,
            temperature=self.sampling.temperature,
        )
        terms = policy_loss_terms(
            log_probs=output.log_probs,
            old_log_probs=episodes.log_probs,
            advantages=episodes.advantages,
            clip_range=self.ppo.clip_range,
        )
        means = masked_row_mean(values=terms, mask=mask)
        return means if self.ppo.loss_reduction == "episode_mean" else means * mask.sum(dim=1)

    def rollout_losses(self, episodes: Episodes) -> Tensor:
        """Return what `episode_losses` is at the parameters that sampled, shape [rows], without a forward.

        The ratio is 1 there, so a token's loss is minus its advantage.
        """
        means = masked_row_mean(values=-episodes.advantages, mask=episodes.response_mask)
        return means if self.ppo.loss_reduction == "episode_mean" else means * episodes.lengths

    def validation_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the SFT loss of good demonstrations, mean over tokens, then over demonstrations, shape []."""
        encoded = self.encode_demonstrations(batch)
        output = self.policy(*encoded)
        return -masked_row_mean(values=output.log_probs, mask=encoded.response_mask).mean()

    # --- what the engine calls ------------------------------------------------------------------------

    def loss_through_wrapper(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute `minibatch_loss` through the strategy's wrapper."""
        loss, sums = self.call_through_wrapper(self.loss_method, minibatch)
        return loss, sums

    def take_step(self) -> float:
        """Clip, step and clear the gradients; return the gradient norm before clipping."""
        return self.clip_and_step(self.ppo.max_grad_norm)

    def why_not_finite(self, minibatch: Minibatch) -> str | None:
        """Return "loss" or "gradient" where that of this minibatch alone is not finite; leave no gradient behind."""
        loss, _ = self.minibatch_loss(minibatch)
        if not bool(torch.isfinite(loss)):
            return "loss"
        if is_sharded(self):  # the gradient there is that of all ranks
            return None
        self.backward_loss(loss)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        is_finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        self.only_optimizer().zero_grad()
        return None if is_finite else "gradient"

    def progress_state(self) -> dict[str, Any]:
        """Return counters and the KL controller's state."""
        return {**super().progress_state(), "kl_controller": self.kl_controller.state_dict()}

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `progress_state` returned."""
        super().load_progress_state(state)
        self.kl_controller.load_state_dict(state["kl_controller"])
