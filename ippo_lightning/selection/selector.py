"""From a plan to weights: score if the rule needs it, decide over the rows of all ranks, change the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import any_rank, world_size
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.influence import agree_to_drop, require_method
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection.activations import ForwardTarget, require_no_gradient_settings, scored_forward
from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.group_agreement import GroupAgreement
from ippo_lightning.selection.grouped_gradients import AlongGroups, TargetGradients
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.own_terms import require_own_terms
from ippo_lightning.selection.plan_metrics import ScoredPlan, weight_metrics
from ippo_lightning.selection.predicted_gain import GainPredictor, weights_of_all
from ippo_lightning.selection.rules import Influence, Random, SelectionRule, decide
from ippo_lightning.selection.scorer import Scored, Scorer
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.table import RolloutTable, gather_table
from ippo_lightning.selection.target_gradients import TargetGradientCache
from ippo_lightning.selection.targets import Target, TargetLoss
from ippo_lightning.selection.whole_groups import Baselines, WholeGroups, renew_baselines, require_groups

OnEmpty = Literal["skip", "keep_all", "stop"]


@dataclass(frozen=True, kw_only=True)
class SelectorSettings:
    """Settings that apply to every rule; the arguments are those of `InfluenceFilter` with the same names.

    Raises:
        UserError: a number out of its range.
    """

    max_weight: float | None = None
    min_keep: int = 0
    on_empty: OnEmpty = "skip"
    monitor_only: bool = False
    drop_when: Literal["mean", "all"] = "mean"
    skips_nonfinite: bool = False
    whole_groups: WholeGroups | None = None
    baselines: Baselines = "all"

    def __post_init__(self) -> None:
        if self.max_weight is not None:
            require_range("InfluenceFilter.max_weight", self.max_weight, at_least=1)
        require_range("InfluenceFilter.min_keep", self.min_keep, at_least=0, integer=True)
        # a YAML is checked by its parser; in Python a misspelt word would quietly mean the other choice
        require_choice("InfluenceFilter.on_empty", self.on_empty, get_args(OnEmpty))
        require_choice("InfluenceFilter.drop_when", self.drop_when, ("mean", "all"))
        if self.whole_groups is not None:
            require_choice("InfluenceFilter.whole_groups", self.whole_groups, get_args(WholeGroups))
            # votes of groups of demonstrations are about single rows
            if self.drop_when == "all":
                raise UserError("InfluenceFilter.drop_when: all decides row by row; use mean, or whole_groups: null")
        require_choice("InfluenceFilter.baselines", self.baselines, get_args(Baselines))


class Selector:
    """Changes a plan by a rule.

    Args:
        rule: decides which rows are kept, and what they weigh.
        target: what scores are about.
        settings: what applies to every rule.
        scoring: how scores are made.
        interface: gives the project's losses.

    Raises:
        UserError: `drop_when: all` with a rule that reads no scores, or a target that leaves a row's own part out with
            settings that do not allow it.
    """

    def __init__(
        self,
        *,
        rule: SelectionRule,
        target: Target,
        settings: SelectorSettings,
        scoring: ScoringSettings,
        interface: ModuleInterface,
    ) -> None:
        by_groups = settings.drop_when == "all"
        if by_groups and "scores" not in rule.needs:
            raise UserError(f"InfluenceFilter.drop_when: all needs a rule that reads scores; {rule.name} reads none")
        if "scores" in rule.needs:
            require_own_terms(target, scoring, by_groups=by_groups)
            require_no_gradient_settings(target, scoring, by_groups=by_groups)
        self.rule = rule
        self.target = target
        self.settings = settings
        self.interface = interface
        self.predictor: GainPredictor | None = None
        """Reads the scores of all rows along the groups, if a callback asks for predictions."""
        self.gradients = TargetGradientCache(scoring, needs_groups=by_groups)
        self.scorer = Scorer(
            scoring, interface=interface, skips_nonfinite=settings.skips_nonfinite, all_groups=by_groups
        )

    def change(
        self,
        plan: UpdatePlan,
        *,
        module: Any,
        trainer: Any,
        iteration: int,
        part: int | None = None,
        minibatch: int = 0,
    ) -> Tensor:
        """Drop and weigh the rows of a plan, and write what the log shows.

        Args:
            plan: of this rank's rows; not sealed.
            module: under training.
            trainer: a `lightning.Trainer` or `FabricLoop`, None outside of both.
            iteration: counted from 0.
            part: number of the micro-batch in its optimizer step, None without gradient accumulation.
            minibatch: number of the optimizer step in its iteration, if each is filtered; a random rule draws by it.

        Returns:
            The factors of all ranks' weights, as the rule decided them, shape [rows].
        """
        self.require_module(module)
        predictor = self._due_predictor(iteration)
        if not any_rank(bool(plan.keep.any()), device=plan.weights.device):
            # Other callbacks or the length limit have left nothing: a target from the rollout would have no gradient.
            return self._when_empty(torch.zeros_like(plan.weights), trainer)
        rule = self.rule.fitted(module)
        found = self.scored(plan, module=module, trainer=trainer, iteration=iteration, part=part)
        own = rule.own_columns(plan.episodes)
        scored = found.scored
        table = self.table(plan, scored, iteration=iteration, part=part or minibatch, own=own)
        settings = self.settings
        decided = partial(
            decide,
            rule,
            min_keep=settings.min_keep,
            max_weight=settings.max_weight,
            whole_groups=settings.whole_groups,
        )
        factors = decided(table)
        if predictor is not None:
            predictor.predict(table, weights_of_all if settings.monitor_only else partial(self._predicted, decided))
        # decided in float64, applied in the scores' dtype, which the plan and the log have
        factors = factors.to(plan.weights.dtype if scored is None else scored.scores.dtype)
        plan.record(**found.metrics(table))
        # the log shows what the rule decided, also if monitor_only or on_empty keeps the plan from it
        plan.record(**weight_metrics(factors))
        scores = None if scored is None else scored.scores
        is_changed = self._apply(plan, table, factors, scores=scores, trainer=trainer)
        if settings.baselines == "kept" and is_changed:
            renew_baselines(plan, module)
        if part is None:  # with accumulation the next micro-batch may need it
            self.gradients.release()
        return factors

    def scored(
        self, plan: UpdatePlan, *, module: Any, trainer: Any, iteration: int, part: int | None = None
    ) -> ScoredPlan:
        """Return the scores of this rank's rows, if the rule reads them; arguments as in `change`."""
        start = time.perf_counter()
        if "scores" not in self.rule.needs:
            return ScoredPlan(start=start)
        if isinstance(self.target, ForwardTarget):
            skips = self.settings.skips_nonfinite
            scored = scored_forward(self.target, module, plan, trainer=trainer, skips=skips)
            return ScoredPlan(scored, start=start, taken=start)
        # before the target's gradient is taken, which takes long on a large model
        self.interface.require_losses(module)
        agreement = self._agreement(module, plan)
        gradients = self.take_gradients(
            plan, module=module, trainer=trainer, iteration=iteration, part=part, along_groups=agreement.add
        )
        halves_cosine = agreement.halves_cosine()
        taken, spent = time.perf_counter(), agreement.seconds
        scored = self.scorer.score(module, plan.episodes, gradients, iteration=iteration)
        of_sample = agreement.scores()
        if of_sample is not None:
            # also those whose own part in the target is not finite
            of_sample[:, scored.broken] = torch.nan
            scored = scored._replace(group_scores=of_sample)
        sampled = self.gradients.num_sampled
        return ScoredPlan(scored, gradients, halves_cosine, start=start, taken=taken, spent=spent, num_sampled=sampled)

    def require_module(self, module: Any) -> None:
        """Check that rule and settings fit the algorithm of a module; see `require_groups` and `SelectionRule.fitted`.

        Args:
            module: under training.
        """
        self.rule.fitted(module)
        require_groups(module, whole_groups=self.settings.whole_groups, baselines=self.settings.baselines)

    def require_method(self, module: Any) -> None:
        """Check that the method of scoring is right for a module.

        Args:
            module: under training; one without losses of its own is scored by a part, which is not known yet.
        """
        is_scored = isinstance(module, torch.nn.Module) and callable(getattr(module, "episode_losses", None))
        if is_scored and not isinstance(self.target, ForwardTarget):
            require_method(module, method=self.scorer.settings.method)

    def require_outlet(self, view: BufferView) -> None:
        """Check that a foreign buffer has room for what the settings may decide.

        Args:
            view: of the buffer.

        Raises:
            UserError: no row, weights without a column for them, or a buffer that may become empty.
        """
        # one rank of several may have no row left by another filter, while the others still have some
        if not len(view) and world_size() == 1:
            raise UserError("InfluenceFilter.buffer: its columns have 0 rows; expected at least one row to filter")
        if view.has_weights or self.settings.monitor_only:
            return
        if self.rule.scales:
            power = getattr(self.rule, "power", None)
            what = f"rule: {self.rule.name}" if power is None else f"power: {power:g}"
            raise UserError(
                f"InfluenceFilter.{what} weights rows, and the buffer has no column 'weights' for the loss to read; "
                "add one, or set power to 0"
            )
        if self.settings.on_empty == "skip" and self.settings.min_keep == 0:
            raise UserError(
                "InfluenceFilter.on_empty: skip would leave an empty buffer; add a column 'weights', set min_keep to 1 "
                "or more, or on_empty to keep_all"
            )

    def take_gradients(
        self,
        plan: UpdatePlan,
        *,
        module: Any,
        trainer: Any,
        iteration: int,
        part: int | None = None,
        along_groups: AlongGroups = lambda directions, num_groups: None,
    ) -> TargetGradients:
        """Return the gradients that the rows are scored along; arguments as in `change` and `TargetGradientCache`."""
        return self.gradients.take(
            module,
            lambda: self._target_loss(module, plan, trainer=trainer),
            iteration=iteration,
            part=part,
            along_groups=along_groups,
        )

    def _due_predictor(self, iteration: int) -> GainPredictor | None:
        """Return what predicts the gain of this iteration, and have all rows scored along the groups for it."""
        if self.predictor is None:
            return None
        self.predictor.newest = None
        is_due = self.predictor.is_due(iteration)
        self.gradients.needs_groups = self.scorer.all_groups = is_due
        return self.predictor if is_due else None

    def _predicted(self, decided: Callable[[RolloutTable], Tensor], table: RolloutTable) -> Tensor:
        """Return the weights that the update would have, shape [rows]."""
        factors = decided(table)
        keeps_all = self.settings.on_empty == "keep_all" and not bool((factors > 0).any())
        return weights_of_all(table) if keeps_all else factors

    def _agreement(self, module: Any, plan: UpdatePlan) -> GroupAgreement:
        if self.scorer.all_groups:  # then all rows are scored along the groups, together with the mean
            return GroupAgreement(None)
        return GroupAgreement(
            lambda directions, num_groups: self.scorer.sampled(module, plan.episodes, directions, num_groups)
        )

    def _target_loss(self, module: Any, plan: UpdatePlan, *, trainer: Any) -> TargetLoss:
        found: Any = self.target.loss(module, plan, trainer=trainer)
        if not isinstance(found, TargetLoss):
            method = f"{type(self.target).__name__}.loss"
            raise UserError(f"{method}: returned a {type(found).__name__}; expected TargetLoss(loss, batches)")
        return found

    def table(
        self, plan: UpdatePlan, scored: Scored | None, *, iteration: int, part: int, own: Mapping[str, Tensor]
    ) -> RolloutTable:
        """Return what the rule decides from, of all ranks; arguments as in `gather_table`."""
        reads_groups = self.settings.whole_groups is not None or self.predictor is not None
        needs = self.rule.needs | ({"groups"} if reads_groups else frozenset())
        if scored is None:
            return gather_table(plan, needs=needs, iteration=iteration, part=part, own=own)
        return gather_table(
            plan,
            needs=needs,
            iteration=iteration,
            part=part,
            scores=scored.scores,
            group_scores=scored.group_scores,
            force_keep=self._force_keep(scored.group_scores),
            force_drop=scored.broken,
            own=own,
        )

    def _force_keep(self, group_scores: Tensor) -> Tensor | None:
        """Return a mask [rows], True if some group of demonstrations is for keeping; None if groups have no vote."""
        if self.settings.drop_when == "mean":
            return None
        # another rule has no threshold; above 0, a small step on the row lowers the loss of the target
        threshold = self.rule.threshold if isinstance(self.rule, (Influence, Random)) else 0.0
        return ~agree_to_drop(group_scores, threshold=threshold)

    def _apply(
        self, plan: UpdatePlan, table: RolloutTable, factors: Tensor, *, scores: Tensor | None, trainer: Any
    ) -> bool:
        """Change the plan; return whether it did, and some rank still has a row to train on."""
        reason = f"InfluenceFilter({self.rule.name})"
        if self.settings.monitor_only:
            if scores is not None:
                plan.note(reason=reason, scores=scores)
            return False
        # decided over all ranks: a rank that keeps nothing while others keep something just has no rows to train on
        if not bool((factors > 0).any()):
            factors = self._when_empty(factors, trainer)
        mine = factors[table.mine].to(plan.weights.device)
        # rows that another callback has dropped stay as they are: their zero factor is not this rule's decision
        plan.drop((mine <= 0) & plan.keep, reason=reason, scores=scores)
        # a factor of 1 for dropped rows: the history of a row would otherwise name the same drop twice
        weights = torch.where(mine > 0, mine, 1.0)
        if bool((weights != 1).any()):
            plan.scale(weights, reason=reason, scores=scores)
        return bool((factors > 0).any())

    def _when_empty(self, factors: Tensor, trainer: Any) -> Tensor:
        if self.settings.on_empty == "stop":
            if trainer is None:
                raise UserError("InfluenceFilter.on_empty: stop needs a trainer to stop; nothing was kept")
            trainer.should_stop = True  # on all ranks: the factors are those of all ranks
        return torch.ones_like(factors) if self.settings.on_empty == "keep_all" else factors
