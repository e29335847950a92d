"""Influence-Guided PPO: score episodes against good demonstrations, drop the anti-aligned, weigh the rest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from lightning import Callback

from ippo_lightning.callbacks.requirements import require_rollouts
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.selection import BufferView, ScoringSettings, SelectionRule, Target
from ippo_lightning.selection.accumulation import Accumulation
from ippo_lightning.selection.buffer_watch import BufferWatch
from ippo_lightning.selection.layer_scores import LayerScores, require_layer_settings, require_layers
from ippo_lightning.selection.module_interface import (
    TO_PASS,
    Buffer,
    EpisodeLosses,
    ModuleInterface,
    ValidationLoss,
    adam_of,
    trainer_of,
)
from ippo_lightning.selection.rollout_targets import with_episode_losses
from ippo_lightning.selection.rules import RuleName, build_rule
from ippo_lightning.selection.score_at import MinibatchScores, ScoreAt, scoring_at
from ippo_lightning.selection.selector import OnEmpty, Selector, SelectorSettings
from ippo_lightning.selection.targets import build_target
from ippo_lightning.selection.whole_groups import Baselines, WholeGroups

_MOST_IDLE_BATCHES = 100
"""A project may collect for some batches before it calls the filter."""


class InfluenceFilter(Callback):
    """Train on the episodes whose gradient agrees with that of good demonstrations (I-PPO).

    At `on_rollout_end`: s_i = <grad loss_i, grad validation loss>, both at the current parameters. Episodes with
    s_i <= `threshold` are dropped; the others are weighted by s_i^power, divided by its mean over the kept episodes.
    Source: Shu, Zhang, Hullman 2026, arXiv 2604.01597. Other rules and targets: docs/guides/selection.md.

    Works with any LightningModule that has `episode_losses(episodes) -> [rows]` and `validation_loss(batch) -> []`, or
    with functions in their place. Our modules call `on_rollout_end`. In any other project the filter acts before each
    `training_step` on the module's `buffer`, in place; or `apply` is called between rollout and update. If the buffer
    has a column `weights`, it is filled; otherwise the dropped rows are removed.

    Args:
        rule: what decides: `influence`; a control that uses another criterion: `random` (as many as influence
            would), `advantage_sign` (mean advantage > 0), `reward` (above the mean reward); or a `SelectionRule` by
            class_path. Only a rule that reads scores needs demonstrations and costs time.
        threshold: of `influence` and `random`: scores up to and including it are dropped; null for 0.
        power: of `influence`: exponent of the score in the weight. 1 as in the paper, 0 filters without weighting;
            null for 1.
        max_weight: cap of a weight, >= 1; the mean of the kept weights stays 1. Null for none.
        min_keep: minimum number of kept episodes, over all ranks; the best of the dropped come back.
        warmup_iterations: number of first iterations without filtering; those of `update.critic_warmup_iterations`,
            which are never filtered, count.
        every_n_iterations: filter every n-th iteration, plain PPO in between.
        on_empty: what happens if nothing is kept on any rank: `skip` the update, `keep_all`, or `stop` the run.
        monitor_only: log the decisions, and do not change the plan.
        drop_when: an episode is dropped if its score along the `mean` gradient of the target is too low, or only if
            the scores along the gradients of `all` groups of demonstrations (`scoring.health_groups`) are.
        whole_groups: keep or drop the responses to a prompt as one: the rule sees one row per group, with the `mean`
            or the `sum` of its scores (or rewards, ...), and `min_keep` counts groups. Null to decide row by row.
        baselines: what kept rows are compared with: `all` rows that were sampled, or the `kept` ones only, whose
            advantages are then estimated again. Of an algorithm without a critic.
        scoring: how scores are made; see `ScoringSettings`.
        score_at: where scores are made: once at `rollout_end`, or again before the step of each `minibatch`, at its
            parameters and for this step only. A target from the rollout is then one from the minibatch. With `layer`,
            as with `minibatch`, but each layer chooses by its own part of the scores which rows it learns from.
        target: what scores are about: `Demonstrations` by default; without demonstrations `ReturnOfBuffer`,
            `AverageReward`, `SequenceReturn` or `LeaveOneOutMean`; without gradients `ActivationDifference`; or a
            `Target` by class_path.
        demonstrations: batches for `validation_loss`, the same on each rank; null for those of the data module's
            `influence_dataloader()`.
        seed: of `random`; null for 0.
        on_nonfinite: if an episode's score is NaN or infinite: `stop` the run or `skip` the episode, which is named.
        episode_losses: `(module, episodes) -> [rows]`; null for the module's method.
        validation_loss: `(module, batch) -> []`; null for the module's method.
        buffer: `(module, batch) -> buffer`, a dictionary or list of columns with one entry per row; null for the
            module's attribute `buffer`, if it has one.

    Raises:
        UserError: an argument out of its range; when a fit begins, a module that can give no losses; after the first
            100 batches of a fit or at its end, a module that was never filtered.
    """

    standard_parts: ClassVar[Mapping[str, type]] = {"scoring": ScoringSettings}
    """What an argument is that is None; a configuration writes it out with all of its values."""

    def __init__(
        self,
        rule: RuleName | SelectionRule = "influence",
        threshold: float | None = None,
        power: float | None = None,
        max_weight: float | None = None,
        min_keep: int = 0,
        warmup_iterations: int = 0,
        every_n_iterations: int = 1,
        on_empty: OnEmpty = "skip",
        monitor_only: bool = False,
        drop_when: Literal["mean", "all"] = "mean",
        whole_groups: WholeGroups | None = None,
        baselines: Baselines = "all",
        scoring: ScoringSettings | None = None,
        target: Target | None = None,
        demonstrations: Sequence[Any] | None = None,
        seed: int | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        episode_losses: EpisodeLosses | None = None,
        validation_loss: ValidationLoss | None = None,
        buffer: Buffer | None = None,
        score_at: ScoreAt = "rollout_end",
    ) -> None:
        super().__init__()
        require_range("InfluenceFilter.warmup_iterations", warmup_iterations, at_least=0, integer=True)
        require_range("InfluenceFilter.every_n_iterations", every_n_iterations, at_least=1, integer=True)
        require_choice("InfluenceFilter.on_nonfinite", on_nonfinite, ("stop", "skip"))
        self.warmup_iterations = warmup_iterations
        self.every_n_iterations = every_n_iterations
        interface = ModuleInterface(episode_losses=episode_losses, buffer=buffer)
        chosen = build_rule(rule, threshold=threshold, power=power, seed=seed)
        self.score_at = score_at
        self.selector = Selector(
            rule=chosen,
            target=with_episode_losses(
                build_target(target, demonstrations=demonstrations, validation_loss=validation_loss), episode_losses
            ),
            settings=SelectorSettings(
                max_weight=max_weight,
                min_keep=min_keep,
                on_empty=on_empty,
                monitor_only=monitor_only,
                drop_when=drop_when,
                skips_nonfinite=on_nonfinite == "skip",
                whole_groups=whole_groups,
                baselines=baselines,
            ),
            scoring=scoring_at(
                score_at, scoring or ScoringSettings(), chosen, whole_groups=whole_groups, baselines=baselines
            ),
            interface=interface,
        )
        self.token = object()
        """Says which of several filters wrote a buffer's weights."""
        self.watch = BufferWatch(interface)
        self.accumulation = Accumulation()
        if score_at == "layer":
            require_layer_settings(chosen, self.selector.target, self.selector.scorer.settings, self.selector.settings)
        self.minibatches = (LayerScores if score_at == "layer" else MinibatchScores)(self.selector)
        self.iteration = 0
        self.has_acted: bool | None = None
        """None before the first batch of a fit."""
        self.num_idle_batches = 0
        """Batches of this fit before the filter acted."""

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint: `lightning.Trainer` takes two filters only if their names differ."""
        parts = (self.selector.rule.name, type(self.selector.target).__name__)
        return super().state_key if parts == ("influence", "Demonstrations") else f"{super().state_key}{list(parts)}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse settings that do not fit the module's algorithm, before the first iteration; warn of doubtful ones."""
        if stage == "fit":
            if not self.selector.interface.has_buffer(pl_module):
                require_rollouts(self, pl_module)
            self.selector.require_module(pl_module)
            doubt = self.selector.rule.doubt(pl_module)
            if doubt and rank() == 0:
                warnings.warn(f"InfluenceFilter.{doubt}", stacklevel=2)
            if self.score_at == "layer":
                require_layers(pl_module, getattr(trainer, "callbacks", ()))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check before the first batch that there can be something to score.

        Raises:
            UserError: neither the filter nor the module has the losses that the rule needs.
        """
        # each fit by itself: another module may follow
        self.has_acted, self.num_idle_batches, self.watch.is_off = None, 0, False
        if "scores" in self.selector.rule.needs:
            self.selector.interface.require_any_losses(pl_module)
            self.selector.target.require(pl_module)
            self.selector.require_method(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check before the first iteration that the optimizer, which exists by now, fits the scores."""
        if "scores" in self.selector.rule.needs and self.selector.gradients.settings.adam_aware:
            adam_of(pl_module)

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score and select; called by modules that make a plan of their update."""
        self.watch.is_off = True  # such a module has no use for the hooks around a training batch
        # The numbers are not logged here: the engine logs those of the plan.
        if not self.changes_minibatches:
            self._change(trainer, pl_module, plan)
            return
        is_due = self.is_due(self.iteration) and plan.trains_policy
        # an iteration that leaves all rows needs no minibatch, and one without any has none
        self.has_acted = self.has_acted or not is_due or not bool(plan.keep.any())
        self.iteration += 1
        self.minibatches.begin(plan if is_due else None)

    @property
    def changes_minibatches(self) -> bool:
        """Whether each minibatch is filtered by itself; the engine then calls `on_minibatch_start`."""
        return self.score_at != "rollout_end"

    def on_minibatch_start(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score and select the rows of one optimizer step, at its parameters."""
        self.has_acted = True
        self.minibatches.change(plan, module=pl_module, trainer=trainer, iteration=self.iteration - 1)

    def apply(self, pl_module: Any, buffer: Any, trainer: Any = None) -> UpdatePlan:
        """Filter what was just rolled out; call it between rollout and update, with or without a `Trainer`.

        After the first call the hooks around training batches leave the module's `buffer` alone.

        Args:
            pl_module: under training, any `torch.nn.Module`.
            buffer: a dictionary or list of columns, which is changed in place; or `Episodes`, which never change:
                multiply their losses by the plan's `weights`.
            trainer: by default the module's own; None without one.

        Returns:
            The plan, with `weights` [rows] of the rows as they came, `keep`, and `metrics` for a log.
        """
        self.watch.is_off = True
        trainer = trainer_of(pl_module) if trainer is None else trainer
        if not isinstance(buffer, Episodes):
            return self._filter_buffer(trainer, pl_module, BufferView(buffer))
        plan = UpdatePlan(episodes=buffer)
        self._log(pl_module, self._change(trainer, pl_module, plan), rows=len(buffer))
        return plan

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Filter the buffer of a module that does not call the filter itself (under `lightning.Trainer`)."""
        view = self.watch.begin(pl_module, batch)
        if view is not None:
            self._filter_buffer(trainer, pl_module, view)
            self.watch.leave(pl_module, view.raw)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the module learned from the buffer that was filtered.

        Raises:
            UserError: it did not, or nothing was filtered in the first 100 batches.
        """
        # None becomes False: a run without any batch must not be told that nothing was filtered.
        self.has_acted = self.has_acted or False
        self.watch.end(pl_module, batch)
        self.num_idle_batches += not self.has_acted
        if self.num_idle_batches == _MOST_IDLE_BATCHES:
            self._require_action(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Check that something was filtered, in a fit of fewer batches than `on_train_batch_end` waits for.

        Raises:
            UserError: nothing was.
        """
        self._require_action(pl_module)

    def is_due(self, iteration: int) -> bool:
        """Return whether iteration number `iteration`, counted from 0, is filtered."""
        since = iteration - self.warmup_iterations
        return since >= 0 and since % self.every_n_iterations == 0

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration count, what the scorer knows, and the target gradient if it will be used again."""
        return {
            "iteration": self.iteration,
            "scorer": self.selector.gradients.state_dict(),
            "passes": self.selector.scorer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.iteration = int(state_dict["iteration"])
        self.selector.gradients.load_state_dict(state_dict["scorer"])
        if "passes" in state_dict:  # not in checkpoints of earlier versions
            self.selector.scorer.load_state_dict(state_dict["passes"])

    def _require_action(self, pl_module: Any) -> None:
        # Not earlier: a project may call `apply` anywhere, and may collect for some batches before it does.
        if self.has_acted is False:
            raise UserError(
                f"InfluenceFilter.buffer: nothing was filtered; {type(pl_module).__name__} has no buffer and calls "
                f"neither on_rollout_end nor apply; {TO_PASS}"
            )

    def _change(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> dict[str, float]:
        """Change the plan if it is due; return the numbers for the log, of all micro-batches of an optimizer step."""
        if self.changes_minibatches:
            raise UserError(
                f"InfluenceFilter.score_at: {self.score_at} needs a module whose update calls on_minibatch_start; use "
                "rollout_end"
            )
        self.has_acted = True
        part = self.accumulation.next_part(trainer, pl_module)
        if not part:  # counted before the filter runs: later micro-batches belong to the same iteration
            self.iteration += 1
        iteration = self.iteration - 1
        # In the critic's warm-up no policy loss counts, so that there is nothing to filter.
        if not self.is_due(iteration) or not plan.trains_policy:
            return {}
        weights = self.selector.change(plan, module=pl_module, trainer=trainer, iteration=iteration, part=part)
        return self.accumulation.together(plan.metrics, weights, rows=len(plan.weights))

    def _filter_buffer(self, trainer: Any, pl_module: Any, view: BufferView) -> UpdatePlan:
        self.selector.require_outlet(view)
        plan = UpdatePlan(episodes=cast(Any, view))  # it has what a plan needs of episodes
        before = view.weights_before(self.token)
        if bool((before != 1).any()):  # another filter has chosen before this one
            # as changes of the plan, so that the rule does not see the rows that the other filter has dropped
            plan.drop(before <= 0, reason="buffer")
            plan.scale(torch.where(before > 0, before, 1.0), reason="buffer")
        # counted before `write`, which may take rows out
        rows = len(view)
        metrics = self._change(trainer, pl_module, plan)
        # also in iterations without filtering: weights of an earlier one must not stay
        view.write(plan.weights, self.token)
        self._log(pl_module, metrics, rows=rows)
        return plan

    def _log(self, pl_module: Any, metrics: dict[str, float], *, rows: int) -> None:
        # without a trainer there is no log, and a plain module has no log_dict
        if trainer_of(pl_module) is not None:
            pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=rows)
