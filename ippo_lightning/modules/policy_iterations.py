"""What the modules of reinforcement learning share: one training step is one iteration of the engine."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any, ClassVar, cast

from ippo_lightning.algorithms import PolicyLoss
from ippo_lightning.engine import DynamicSampling, PilotCommit, UpdateSettings, run_iteration
from ippo_lightning.modules.base import BaseModule
from ippo_lightning.modules.dynamic_sampling import Shortfall
from ippo_lightning.records import Batch, Episodes, UpdateStats


class PolicyIterations(BaseModule):
    """A module with the stages of an iteration, `plan_rollout` to `minibatch_loss`; comes first among the bases."""

    loss_method = "minibatch_loss"
    loss_reads: ClassVar[frozenset[str]] = frozenset()
    """What a subclass's `loss_terms` reads of the output besides `log_probs`: names from "entropy" and "values"."""
    update_settings: UpdateSettings
    loss: PolicyLoss
    last_stats: UpdateStats | None = None
    """Of the newest iteration; None before the first one."""
    dynamic_sampling: DynamicSampling | None = None
    pilot_commit: PilotCommit | None = None
    _shortfall: Shortfall | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, float]:
        """Run one iteration; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        with self.keeping_failed_step():
            stats = run_iteration(
                cast(Any, self),  # the stages are those of the subclass
                batch,
                settings=self.update_settings,
                iteration=self.iteration,
                callbacks=self.backend.callbacks,
                trainer=self.backend.host,
                dynamic_sampling=self.dynamic_sampling,
                pilot_commit=self.pilot_commit,
            )
        self.last_stats = stats
        self._shortfall = self._shortfall or Shortfall()
        self._shortfall.note(stats, self.dynamic_sampling)
        numbers, num_episodes = self.after_update(stats)
        return self.finish_iteration(
            {
                **stats.metrics,
                **numbers,
                "update/learning_rate_factor": factor,
                "time/iteration_seconds": time.perf_counter() - start,
            },
            episodes=num_episodes,
            optimizer_steps=stats.optimizer_steps,
            tokens=stats.tokens_trained,
        )

    @abstractmethod
    def after_update(self, stats: UpdateStats) -> tuple[dict[str, float], int]:
        """Move what moves once per iteration; return more numbers for the log, and the episodes that count as seen.

        Args:
            stats: of the iteration, over all ranks.
        """

    def use_rows(self, episodes: Episodes) -> None:
        """Take from the rows of an iteration what its losses need of all of them together; nothing by default.

        Args:
            episodes: with advantages, of this rank.
        """

    def take_step(self) -> float:
        """Clip, step and clear the gradients; return the gradient norm before clipping."""
        return self.clip_and_step(self.update_settings.max_grad_norm)

    @property
    def _reads(self) -> frozenset[str]:
        return self.loss_reads | self.loss.reads
