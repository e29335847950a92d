"""Influence-Guided PPO: score episodes against good demonstrations, drop the anti-aligned, weight the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor

from ippo_lightning.callbacks.selection import SelectionRule, Selector
from ippo_lightning.engine import gather_rows
from ippo_lightning.errors import UserError
from ippo_lightning.influence import gradient_norm, influence_scores, score_quantiles, target_gradient
from ippo_lightning.maths import effective_sample_size
from ippo_lightning.records import Episodes, UpdatePlan


class InfluenceFilter(Callback):
    """Train on the episodes whose gradient agrees with that of good demonstrations (I-PPO).

    At `on_rollout_end`: s_i = <grad loss_i, grad validation loss>, both at the current parameters; episodes with
    s_i <= `threshold` are dropped, the others weighted by s_i^power over the mean of the kept. Source: Shu, Zhang,
    Hullman 2026, arXiv 2604.01597. Works with any LightningModule that has `episode_losses(episodes) -> [episodes]` and
    `validation_loss(batch) -> []`, and calls our hooks.

    Args:
        rule: what decides: `influence`; or a control that drops by something else: `random` (the same share as
            influence would), `advantage_sign` (mean advantage > 0), `reward` (above the mean reward).
        threshold: scores up to and including it are dropped.
        power: of the score in the weight: 1 as in the paper, 0 filters without weighting.
        max_weight: cap of a weight; the mean of the kept weights stays 1. Null for none.
        min_keep: at least so many episodes are kept, of all ranks, the highest-scoring of the dropped coming back.
        warmup_iterations: plain PPO for so many iterations first.
        every_n_iterations: filter every n-th iteration, plain PPO in between.
        on_empty: what happens when nothing is kept on any rank: `skip` the update, `keep_all`, or `stop` the run.
        monitor_only: score and log, change nothing.
        micro_batch_size: episodes in one scoring pass.
        demonstrations: batches for `validation_loss`; by default those of the data module's
            `influence_dataloader()`.
        seed: of the `random` rule.

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
        micro_batch_size: int = 64,
        demonstrations: Sequence[Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, lowest in (
            ("warmup_iterations", warmup_iterations, 0),
            ("every_n_iterations", every_n_iterations, 1),
            ("micro_batch_size", micro_batch_size, 1),
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
        self.micro_batch_size = micro_batch_size
        self.demonstrations = demonstrations
        self.iteration = 0

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score, select, reweight."""
        if self.is_due(self.iteration):
            self.filter(trainer, pl_module, plan)
        self.iteration += 1

    def is_due(self, iteration: int) -> bool:
        """Return whether iteration number `iteration`, counted from 0, is filtered."""
        since = iteration - self.warmup_iterations
        return since >= 0 and since % self.every_n_iterations == 0

    def filter(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Score the plan's episodes and change their weights by the rule."""
        start = time.perf_counter()
        _require_methods(pl_module)
        direction = self.validation_gradient(trainer, pl_module)
        scores = self.score(pl_module, plan.episodes, direction)
        weights = self.selector.weights(scores=scores, episodes=plan.episodes, iteration=self.iteration)
        all_scores, all_weights = gather_rows(torch.stack([scores, weights], dim=1))[0].unbind(dim=1)
        kept = int((all_weights > 0).sum())
        plan.record(
            influence__gradient_norm=gradient_norm(direction),
            influence__scored_kept_share=kept / len(all_weights),
            influence__effective_sample_size=float(effective_sample_size(weights=all_weights)),
            influence__max_weight=float(all_weights.max()),
            time__influence_seconds=time.perf_counter() - start,
            **{f"influence__score_{name}": value for name, value in score_quantiles(all_scores).items()},
        )
        if kept == 0 and not self.monitor_only:
            weights = self._when_empty(trainer, weights)
        if self.monitor_only:
            weights = plan.weights
        plan.reweight(weights, reason=f"{type(self).__name__}({self.selector.rule})", scores=scores)

    def validation_gradient(self, trainer: Any, pl_module: Any) -> dict[str, Tensor]:
        """Return the gradient of the validation loss over all demonstrations, at the current parameters.

        Every rank takes all demonstrations, so the gradient is the global one on each without a collective.
        """
        batches = list(self._demonstration_batches(trainer))
        weights = [float(len(batch["prompts"])) if isinstance(batch, Mapping) else 1.0 for batch in batches]
        return target_gradient(pl_module, lambda module, batch: module.validation_loss(batch), batches, weights=weights)

    def score(self, pl_module: Any, episodes: Episodes, direction: Mapping[str, Tensor]) -> Tensor:
        """Return the influence score of each episode, shape [episodes]."""
        # by length, so that a scoring pass holds little padding
        order = episodes.lengths.argsort(stable=True)
        parts = [episodes.select(rows) for rows in order.split(self.micro_batch_size)]
        sorted_scores = influence_scores(
            pl_module, lambda module, part: module.episode_losses(part), parts, dict(direction)
        )
        scores = torch.empty_like(sorted_scores)
        scores[order] = sorted_scores
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration count."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the iteration count."""
        self.iteration = int(state_dict["iteration"])

    def _when_empty(self, trainer: Any, weights: Tensor) -> Tensor:
        if self.on_empty == "stop":
            trainer.should_stop = True
        return torch.ones_like(weights) if self.on_empty == "keep_all" else weights

    def _demonstration_batches(self, trainer: Any) -> Iterable[Any]:
        if self.demonstrations is not None:
            return self.demonstrations
        datamodule = getattr(trainer, "datamodule", None)
        loader = getattr(datamodule, "influence_dataloader", None)
        if loader is None:
            raise UserError(
                f"InfluenceFilter.demonstrations: null, and {type(datamodule).__name__} has no influence_dataloader(); "
                "hand in batches for validation_loss, or give the data module that method"
            )
        batches: Iterable[Any] = loader()
        return batches


def _require_methods(pl_module: Any) -> None:
    for name in ("episode_losses", "validation_loss"):
        if not callable(getattr(pl_module, name, None)):
            raise UserError(
                f"InfluenceFilter: {type(pl_module).__name__} has no method {name}; it needs "
                "episode_losses(episodes) -> [episodes] and validation_loss(batch) -> []"
            )
