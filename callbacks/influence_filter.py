"""Influence-Guided PPO: score episodes against good demonstrations, drop the anti-aligned, weight the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor

from ippo_lightning.distributed.collectives import gather_rows
from ippo_lightning.errors import UserError
from ippo_lightning.influence import agree_to_drop, gradient_norm, score_quantiles
from ippo_lightning.maths import effective_sample_size
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection.buffer_view import Columns
from ippo_lightning.selection.module_interface import Attachment, Buffer, EpisodeLosses, ValidationLoss
from ippo_lightning.selection.rules import SelectionRule, Selector
from ippo_lightning.selection.score_health import health_of, part_fractions
from ippo_lightning.selection.scorer import Direction, Scored, Scorer, ScoringSettings


class InfluenceFilter(Callback):
    """Train on the episodes whose gradient agrees with that of good demonstrations (I-PPO).

    At `on_rollout_end`: s_i = <grad loss_i, grad validation loss>, both at the current parameters; episodes with
    s_i <= `threshold` are dropped, the others weighted by s_i^power over the mean of the kept. Source: Shu, Zhang,
    Hullman 2026, arXiv 2604.01597.

    Works with any LightningModule that has `episode_losses(episodes) -> [rows]` and `validation_loss(batch) -> []`,
    or whose losses are handed in. Our modules call `on_rollout_end`; of any other, each training batch is filtered
    before its `training_step`: the `buffer` it names, in place. A buffer with a column `weights` is weighted, another
    loses the rows that are dropped.

    Args:
        rule: what decides: `influence`; or a control that drops by something else: `random` (the same fraction as
            influence would), `advantage_sign` (mean advantage > 0), `reward` (above the mean reward).
        threshold: scores up to and including it are dropped.
        power: of the score in the weight: 1 as in the paper, 0 filters without weighting.
        max_weight: cap of a weight; the mean of the kept weights stays 1. Null for none.
        min_keep: at least so many episodes are kept, of all ranks, the highest-scoring of the dropped coming back.
        warmup_iterations: plain PPO for so many iterations first.
        every_n_iterations: filter every n-th iteration, plain PPO in between.
        on_empty: what happens when nothing is kept on any rank: `skip` the update, `keep_all`, or `stop` the run.
        monitor_only: score and log, change nothing.
        drop_when: an episode is dropped when its score along the `mean` validation gradient says so, or only when `all`
            groups of demonstrations (`scoring.health_groups`) say so, each by itself.
        scoring: how scores are made; see `ScoringSettings`.
        demonstrations: batches for `validation_loss`, the same on every rank; by default those of the data module's
            `influence_dataloader()`.
        seed: of the `random` rule.
        on_nonfinite: where an episode's score is NaN or infinite: `stop` the run, or `skip` the episode; it is named.
        episode_losses: `(module, episodes) -> [rows]`; by default the module's method.
        validation_loss: `(module, batch) -> []`; by default the module's method.
        buffer: `(module, batch) -> buffer`, a dictionary or list of columns with a row an episode; by default the
            module's attribute `buffer`, if it has one.

    Raises:
        UserError: an argument out of its range; later, a module or data module without the methods named above.
    """

    def __init__(
        self,
        rule: SelectionRule = "influence",
        threshold: float = 0.0,
        power: float = 1.0,
        max_weight: float | None = None,
        min_keep: int = 0,
        warmup_iterations: int = 0,
        every_n_iterations: int = 1,
        on_empty: Literal["skip", "keep_all", "stop"] = "skip",
        monitor_only: bool = False,
        drop_when: Literal["mean", "all"] = "mean",
        scoring: ScoringSettings | None = None,
        demonstrations: Sequence[Any] | None = None,
        seed: int = 0,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        episode_losses: EpisodeLosses | None = None,
        validation_loss: ValidationLoss | None = None,
        buffer: Buffer | None = None,
    ) -> None:
        super().__init__()
        for name, value, lowest in (
            ("warmup_iterations", warmup_iterations, 0),
            ("every_n_iterations", every_n_iterations, 1),
        ):
            if value < lowest:
                raise UserError(f"InfluenceFilter.{name}: {value} is out of range; expected an integer >= {lowest}")
        self.selector = Selector(
            rule=rule, threshold=threshold, power=power, max_weight=max_weight, min_keep=min_keep, seed=seed
        )
        self.warmup_iterations = warmup_iterations
        self.every_n_iterations = every_n_iterations
        self.on_empty = on_empty
        self.monitor_only = monitor_only
        self.drop_when = drop_when
        self.attachment = Attachment(
            episode_losses=episode_losses,
            validation_loss=validation_loss,
            buffer=buffer,
            demonstrations=demonstrations,
        )
        self.scorer = Scorer(
            scoring or ScoringSettings(),
            attachment=self.attachment,
            needs_groups=drop_when == "all",
            skips_nonfinite=on_nonfinite == "skip",
        )
        self.iteration = 0

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score, select, reweight."""
        if self.is_due(self.iteration):
            self.filter(trainer, pl_module, plan)
        self.iteration += 1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Filter the buffer of a module that does not call `on_rollout_end` itself (under `lightning.Trainer`)."""
        if not self.attachment.has_buffer(pl_module):
            return
        columns = Columns(self.attachment.buffer(pl_module, batch))
        self._require_outlet(columns)
        plan = UpdatePlan(episodes=cast(Any, columns))  # has what planning needs of episodes
        self.on_rollout_end(trainer, pl_module, plan)
        columns.apply(plan.weights)
        pl_module.log_dict(dict(plan.metrics), on_step=True, on_epoch=False, batch_size=len(columns))

    def _require_outlet(self, columns: Columns) -> None:
        """Check that what the settings may ask for can be told to a buffer of this kind."""
        if columns.has_weights or self.monitor_only:
            return
        if self.selector.power > 0 and self.selector.rule == "influence":
            raise UserError(
                f"InfluenceFilter.power: {self.selector.power:g} weights episodes, and the buffer has no column "
                "'weights' to tell the loss; add one, or set power to 0"
            )
        if self.on_empty == "skip" and self.selector.min_keep == 0:
            raise UserError(
                "InfluenceFilter.on_empty: skip would leave an empty buffer; add a column 'weights', set min_keep to 1 "
                "or more, or on_empty to keep_all"
            )

    def is_due(self, iteration: int) -> bool:
        """Return whether iteration number `iteration`, counted from 0, is filtered."""
        since = iteration - self.warmup_iterations
        return since >= 0 and since % self.every_n_iterations == 0

    def filter(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score the plan's episodes and change their weights by the rule."""
        start = time.perf_counter()
        self.attachment.require(pl_module)
        direction = self.scorer.direction(pl_module, self.attachment.demonstrations(trainer), iteration=self.iteration)
        taken = time.perf_counter()
        scored = self.scorer.score(pl_module, plan.episodes, direction)
        weights = self.selector.weights(
            scores=scored.scores,
            episodes=plan.episodes,
            iteration=self.iteration,
            force_keep=_force_keep(scored.group_scores, self.selector.threshold) if self.drop_when == "all" else None,
            force_drop=scored.broken,
        )
        now = time.perf_counter()
        plan.record(
            time__target_gradient_seconds=taken - start,
            time__scoring_seconds=now - taken,
            time__influence_seconds=now - start,
        )
        kept = self._report(plan, direction, scored, weights)
        if kept == 0 and not self.monitor_only:
            weights = self._when_empty(trainer, weights)
        reason = f"{type(self).__name__}({self.selector.rule})"
        if self.monitor_only:
            plan.note(reason=reason, scores=scored.scores)
            return
        plan.drop(weights <= 0, reason=reason, scores=scored.scores)
        plan.scale(torch.where(weights > 0, weights, 1.0), reason=reason, scores=scored.scores)

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration count, and the direction where later iterations will use it again."""
        return {"iteration": self.iteration, "scorer": self.scorer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.iteration = int(state_dict["iteration"])
        self.scorer.load_state_dict(state_dict["scorer"])

    def _report(self, plan: UpdatePlan, direction: Direction, scored: Scored, weights: Tensor) -> int:
        """Write what the log shows, over the episodes of all ranks; return how many are kept."""
        columns = torch.cat([torch.stack([scored.scores, weights]), scored.group_scores])
        scores, everyone_weights, *groups = gather_rows(columns.T.contiguous())[0].T
        kept = int((everyone_weights > 0).sum())
        plan.record(
            influence__gradient_norm=gradient_norm(direction.mean),
            influence__scored_kept_fraction=kept / len(everyone_weights),
            influence__effective_sample_size=float(effective_sample_size(weights=everyone_weights)),
            influence__nonfinite_episodes=float(gather_rows(scored.broken)[0].sum()),
            influence__max_weight=float(everyone_weights.max()),
            **{f"influence__score_{name}": value for name, value in score_quantiles(scores).items()},
            **{f"influence__part_{name}": share for name, share in part_fractions(scored.by_parameter).items()},
            **health_of(direction, torch.stack(groups) if groups else scored.group_scores),
        )
        return kept

    def _when_empty(self, trainer: Any, weights: Tensor) -> Tensor:
        if self.on_empty == "stop":
            trainer.should_stop = True
        return torch.ones_like(weights) if self.on_empty == "keep_all" else weights


def _force_keep(group_scores: Tensor, threshold: float) -> Tensor:
    """Return a mask [rows], True where some group of demonstrations is for keeping."""
    return ~agree_to_drop(group_scores, threshold=threshold)
