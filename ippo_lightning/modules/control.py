"""PPO for environments: the engine, losses and callbacks of language models, on transitions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from ippo_lightning.algorithms import GAE, AdvantageEstimator, ClippedLoss, PolicyLoss, ValueLoss
from ippo_lightning.data import ControlDataModule
from ippo_lightning.distributed.collectives import all_reduce_sum, rank, world_size
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import Moments, masked_moments, mean_and_variance
from ippo_lightning.metrics import ReturnMetrics
from ippo_lightning.modules.control_parts import EPSILON, require_parts, require_whole_minibatches, with_unit_advantages
from ippo_lightning.modules.critic_warmup import CriticWarmup, require_critic
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.modules.loss_outputs import Reduction, checked_terms, sums_for_log
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.policies import MLP, PolicyBuilder, PolicyOutput
from ippo_lightning.records import (
    Batch,
    ControlEpisodes,
    Episodes,
    Minibatch,
    RenderedEpisode,
    RolloutPlan,
    UpdateStats,
)
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.rollouts import ControlRollouts, EnvironmentSettings, play_episodes
from ippo_lightning.rollouts.environments import reward_threshold

NormaliseAdvantages = Literal["minibatch", "none"]


class ControlPPOModule(CriticWarmup, EvaluatedModule):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of an actor and a critic in environments.

    One `training_step` is one iteration: `num_steps` steps of each environment, advantages, then each transition is a
    row of its own: the callbacks' `on_rollout_end`, and epochs of `minibatch_loss`. The defaults are those of
    stable-baselines3, up to the number of environments.

    Args:
        environment: which one, and how many of it.
        policy: builds actor and critic; two networks of 2 x 64 units by default.
        num_steps: of each environment in one iteration.
        update: epochs, sizes, and what filtering does; a row is one transition.
        advantages: the advantage estimator, one that reads values; `GAE` with gamma 0.99 by default.
        normalise_advantages: to mean 0 and variance 1 in each `minibatch` of a rank, or not at all (`none`).
            Influence scores see them normalised over the whole rollout.
        loss: the policy loss; `ClippedLoss` by default.
        value_loss: the critic's loss; half the squared error by default.
        entropy_coef: weight of the entropy bonus, >= 0.
        optimizer: see `BaseModule`; Adam with the learning rate 3e-4 by default.
        greedy_evaluation: evaluate with the most probable actions, and not with drawn ones.
        evaluation_seed: an evaluation draws from a random stream of its own and does not touch that of training.

    Raises:
        UserError: a number out of its range, an environment that cannot be made, or parts that do not fit.
    """

    standard_parts: ClassVar[Mapping[str, type]] = {"policy": MLP, "loss": ClippedLoss}
    """As of the base; the other parts have other values here than those of their classes."""
    evaluates = "episodes"

    def __init__(
        self,
        *,
        environment: EnvironmentSettings,
        policy: PolicyBuilder | None = None,
        num_steps: int = 2048,
        update: UpdateSettings | None = None,
        advantages: AdvantageEstimator | None = None,
        normalise_advantages: NormaliseAdvantages = "minibatch",
        loss: PolicyLoss | None = None,
        value_loss: ValueLoss | None = None,
        entropy_coef: float = 0.0,
        optimizer: OptimizerSettings | None = None,
        greedy_evaluation: bool = False,
        evaluation_seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer or OptimizerSettings(learning_rate=3e-4, epsilon=1e-5))
        require_range("model.num_steps", num_steps, at_least=1, integer=True)
        require_range("model.entropy_coef", entropy_coef, at_least=0, below=math.inf)
        require_choice("model.normalise_advantages", normalise_advantages, get_args(NormaliseAdvantages))
        self.update_settings = update or UpdateSettings(num_epochs=10, max_grad_norm=0.5)
        if normalise_advantages == "minibatch":
            require_whole_minibatches(self.update_settings)
        self.loss, self.value_loss = loss or ClippedLoss(), value_loss or ValueLoss(coef=1.0, clip_range=None)
        self.advantages = advantages or GAE(gamma=0.99, whiten=False)
        require_parts(self.loss, self.advantages)
        require_critic(self.update_settings, self.value_loss, has_values=True)
        self.rollouts = ControlRollouts(environment)
        self.policy = (policy or MLP()).build(self.rollouts.spaces.observations, self.rollouts.spaces.actions)
        self.num_steps, self.entropy_coef = num_steps, entropy_coef
        self.normalise_advantages = normalise_advantages
        self.pass_size = PassSize(self.update_settings.max_tokens, field="update.max_tokens")
        self.greedy_evaluation, self.evaluation_seed = greedy_evaluation, evaluation_seed
        self.evaluation_metrics: ReturnMetrics = ReturnMetrics()
        self.environment_steps = 0
        self._advantage_moments = (0.0, 1.0)

    def use_data(self, datamodule: object) -> None:
        """Refuse a data module of texts.

        Args:
            datamodule: of the run; None for none.

        Raises:
            UserError: it gives no seeds.
        """
        if datamodule is not None and not isinstance(datamodule, ControlDataModule):
            raise UserError(
                f"data: {type(datamodule).__name__} is not for environments; ControlPPOModule needs ControlDataModule"
            )

    def after_update(self, stats: UpdateStats) -> tuple[dict[str, float], int]:
        """Count the environments' steps; return numbers of the episodes that were played.

        Args:
            stats: see `PolicyIterations`.
        """
        self.environment_steps += stats.num_episodes
        played = self._played()
        numbers = {**played, "progress/environment_steps": self.environment_steps}
        return numbers, int(played["rollout/finished_episodes"])

    def _played(self) -> dict[str, float]:
        """Return mean return and length of the newest episodes of all ranks; NaN before the first one ends."""
        recent = self.rollouts.recent
        returns, lengths = (sum(numbers) for numbers in zip((0.0, 0), *recent, strict=True))
        sums = [self.rollouts.finished, len(recent), returns, lengths]
        device = next(self.parameters()).device
        finished, count, value, steps = all_reduce_sum(torch.tensor(sums, dtype=torch.float64, device=device)).tolist()
        return {
            "rollout/finished_episodes": finished,
            "rollout/episode_return": value / count if count else math.nan,
            "rollout/episode_length": steps / count if count else math.nan,
        }

    # --- the stages: override one, leave the rest ----------------------------------------------------

    def plan_rollout(self, batch: Batch) -> RolloutPlan:
        """Return the plan of one rollout."""
        return RolloutPlan(batch=batch, counts=torch.ones(1, dtype=torch.long))

    def rollout(self, plan: RolloutPlan) -> ControlEpisodes:
        """Do the next `num_steps` steps of each environment; a row is the fragment of one."""
        gamma = float(getattr(self.advantages, "gamma", 1.0))
        return self.rollouts.collect(self.policy, num_steps=self.num_steps, gamma=gamma)

    def compute_rewards(self, episodes: ControlEpisodes) -> ControlEpisodes:
        """Return the episodes: the environment has given their rewards."""
        return episodes

    def compute_advantages(self, episodes: ControlEpisodes) -> ControlEpisodes:
        """Fill `advantages` and `returns` by the estimator; return one row per transition."""
        rows = self.advantages(episodes).transitions()
        self.use_rows(rows)
        return rows

    def use_rows(self, episodes: Episodes) -> None:
        """Take mean and deviation of the advantages of all ranks, by which scores see them normalised.

        Args:
            episodes: transitions of this rank.
        """
        if self.normalise_advantages == "minibatch":
            moments = masked_moments(values=episodes.advantages, mask=episodes.mask)
            mean, variance = mean_and_variance(Moments(*all_reduce_sum(torch.stack(moments))))
            self._advantage_moments = float(mean), float(variance.sqrt())

    # --- the loss, defined once ----------------------------------------------------------------------

    def score(
        self, episodes: ControlEpisodes, *, with_values: bool = False, with_entropy: object = False
    ) -> PolicyOutput:
        """Return what the policy computes for episodes at the current parameters, with its graph.

        Args:
            episodes: sampled.
            with_values: also the critic's values.
            with_entropy: not used: the entropy costs nothing here.
        """
        output: PolicyOutput = self.policy(episodes.observations, episodes.actions, with_values=with_values)
        return output

    def loss_terms(self, output: PolicyOutput, episodes: ControlEpisodes) -> Tensor:
        """Return the policy loss of each step, shape [rows, steps]: the one method that an algorithm overrides.

        Args:
            output: what `score` returned, or what is stored of the rollout.
            episodes: with `log_probs` of the policy that sampled, and `advantages`.
        """
        return self.loss.terms(output, episodes)

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one minibatch, shape [], and sums for the log.

        Args:
            minibatch: transitions, the weights of their losses, and the denominators of the whole optimizer step.
        """
        episodes, mask = cast(ControlEpisodes, minibatch.episodes), minibatch.episodes.mask
        output = self.score(episodes, with_values=True)
        assert output.entropy is not None, "always there"
        assert output.values is not None, "requested above"
        reduced = partial(self._reduction.of_minibatch, mask=mask)
        if self.normalise_advantages == "minibatch":
            episodes = with_unit_advantages(episodes, minibatch.weights)
        policy_loss = reduced(self._terms(output, episodes), minibatch.weights, minibatch.policy_denominator)
        terms = self.value_loss.terms(output.values, episodes)
        value_loss = reduced(terms, minibatch.value_weights, minibatch.value_denominator)
        loss = policy_loss + self.value_loss.coef * value_loss
        if self.entropy_coef > 0:
            bonus = reduced(output.entropy, minibatch.value_weights, minibatch.value_denominator)
            loss = loss - self.entropy_coef * bonus
        sums = sums_for_log(output, minibatch, loss=self.loss)
        loss = self.loss_of_iteration(loss, value_loss)
        return loss, {**sums, "policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    @property
    def _reduction(self) -> Reduction:
        return Reduction(self.update_settings.loss_reduction, max_length=1)  # a row is one transition

    # --- what the influence callback scores ----------------------------------------------------------

    def episode_losses(self, episodes: ControlEpisodes) -> Tensor:
        """Return the policy loss of each row at the current parameters, shape [rows], with its graph."""
        output = self.score(episodes, with_values="values" in self._reads)
        return self._reduction.of_rows(self._terms(output, self._scored(episodes)), episodes)

    def rollout_losses(self, episodes: ControlEpisodes) -> Tensor | None:
        """Return what `episode_losses` is at the parameters that sampled, shape [rows], without a forward.

        None if `loss_terms` reads the entropy, which a rollout does not store: scores then need one more forward.
        """
        if "entropy" in self._reads:
            return None
        output = PolicyOutput(log_probs=episodes.log_probs, entropy=None, values=episodes.values)
        return self._reduction.of_rows(self._terms(output, self._scored(episodes)), episodes)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return minus the mean log-prob of an expert's actions in nats, shape [].

        Args:
            batch: `observations` [rows, *shape] as the policy sees them, and `actions` [rows] or [rows, size].
        """
        output = self.policy(batch["observations"].unsqueeze(1), batch["actions"].unsqueeze(1), with_values=False)
        return cast(Tensor, -output.log_probs.mean())

    def _scored(self, episodes: ControlEpisodes) -> ControlEpisodes:
        # A scoring pass is no minibatch: its rows depend on the memory, and a score must not.
        if self.normalise_advantages == "none":
            return episodes
        mean, deviation = self._advantage_moments
        return episodes.evolve(advantages=(episodes.advantages - mean) / (deviation + EPSILON))

    def _terms(self, output: PolicyOutput, episodes: ControlEpisodes) -> Tensor:
        return checked_terms(self.loss_terms, output, episodes, reads=self._reads)

    # --- evaluation, checkpoints, model --------------------------------------------------------------

    def sample(self, batch: Batch) -> object:
        """Play the episodes of a batch of seeds; return the return and length of each."""
        return play_episodes(self.policy, self.rollouts, seeds=batch["seeds"], greedy=self.greedy_evaluation)

    def evaluate_batch(self, batch: Batch, batch_index: int) -> None:
        """Play the episodes of a batch of seeds, and add them to `evaluation_metrics`.

        Args:
            batch: `seeds`, one per episode.
            batch_index: see `EvaluatedModule`.
        """
        with self.evaluation_stream(batch_index, of_rank=rank()):
            self.evaluation_metrics.update(cast(Any, self.sample(batch)))

    def render_episode(self, *, seed: int, max_frames: int, max_size: int, max_steps: int) -> RenderedEpisode:
        """Play one episode in an environment of its own, and render it; arguments as in `rollouts.rendering`."""
        from ippo_lightning.rollouts.rendering import render_episode  # most processes render nothing

        limits: dict[str, int] = {"max_frames": max_frames, "max_size": max_size, "max_steps": max_steps}
        with self.evaluation_stream(0, of_rank=0):
            return render_episode(self.policy, self.rollouts, seed=seed, greedy=self.greedy_evaluation, **limits)

    def num_evaluated(self, batch: Batch) -> int:
        """Return the number of episodes of a batch."""
        return len(batch["seeds"])

    def describe_evaluation(self) -> dict[str, Any]:
        """Return the environment, the return at which gymnasium calls it solved, and how actions were chosen."""
        threshold = reward_threshold(self.rollouts.settings)
        solved = {} if threshold is None else {"reward_threshold": threshold}
        return {"environment": self.rollouts.settings.id, **solved, "greedy": self.greedy_evaluation}

    def save_model(self, folder: Path) -> None:
        """Write the weights as `policy.safetensors`, and the environment's settings as `environment.json`.

        Args:
            folder: exists.
        """
        weights = {name: value.detach().cpu().contiguous() for name, value in self.policy.state_dict().items()}
        moments = self.rollouts.observation_moments
        if moments is not None:
            weights["observations.mean"] = torch.from_numpy(moments.mean.copy())
            weights["observations.deviation"] = torch.from_numpy(moments.scale())
        save_file(weights, folder / "policy.safetensors")
        (folder / "environment.json").write_text(
            json.dumps(asdict(self.rollouts.settings), indent=2) + "\n", encoding="utf-8"
        )

    def close(self) -> None:
        """End the environments; a rollout begins them again, where they were."""
        self.rollouts.close()

    def teardown(self, stage: str) -> None:
        """End the environments (under `lightning.Trainer`)."""
        self.close()

    def progress_state(self) -> dict[str, Any]:
        """Return counters, and for each rank what continues the episodes of its environments."""
        mine = self.rollouts.state_dict()
        states: list[Any] = [mine]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, mine)
        return {**super().progress_state(), "environment_steps": self.environment_steps, "rollouts": states}

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `progress_state` returned."""
        super().load_progress_state(state)
        self.environment_steps = int(state["environment_steps"])
        # With fewer ranks the random streams of the checkpoint refuse the run by themselves.
        self.rollouts.load_state_dict(state["rollouts"][rank() % len(state["rollouts"])])
