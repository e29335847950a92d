"""Where scores are made: once at the end of a rollout, or before each optimizer step at its parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor

from ippo_lightning.distributed.collectives import any_rank
from ippo_lightning.errors import UserError, require_choice
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection.accumulation import Accumulation
from ippo_lightning.selection.rules import SelectionRule
from ippo_lightning.selection.selector import Selector
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.whole_groups import Baselines, WholeGroups

ScoreAt = Literal["rollout_end", "minibatch", "layer"]


def scoring_at(
    score_at: ScoreAt,
    scoring: ScoringSettings,
    rule: SelectionRule,
    *,
    whole_groups: WholeGroups | None,
    baselines: Baselines = "all",
) -> ScoringSettings:
    """Return the settings of scoring, after a check that they make sense there.

    Args:
        score_at: where.
        scoring: as the user set it.
        rule: of the filter.
        whole_groups: of the filter.
        baselines: of the filter.

    Raises:
        UserError: an unknown word, or a combination that makes no sense.
    """
    require_choice("InfluenceFilter.score_at", score_at, get_args(ScoreAt))
    if score_at == "rollout_end":
        return scoring
    if "groups" in rule.needs or whole_groups is not None:
        reader = rule.name if whole_groups is None else f"whole_groups {whole_groups}"
        found = f"and {reader} reads groups, which are whole only at the end of a rollout"
        raise UserError(f"InfluenceFilter.score_at: {score_at}, {found}; use rollout_end")
    if baselines == "kept":
        found = (
            "and baselines: kept compares the responses to a prompt, which are together only at the end of a rollout"
        )
        raise UserError(f"InfluenceFilter.score_at: {score_at}, {found}; use rollout_end, or baselines: all")
    if type(rule).own_columns is not SelectionRule.own_columns:
        found = f"and {rule.name} reads the rows of a rollout in their order"
        raise UserError(f"InfluenceFilter.score_at: {score_at}, {found}; use rollout_end")
    if scoring.method == "finite_difference":
        found = "and finite_difference reads losses at the parameters that sampled"
        raise UserError(f"InfluenceFilter.score_at: {score_at}, {found}; use another scoring.method")
    if scoring.refresh_every_n_iterations > 1:
        found = f"and scoring.refresh_every_n_iterations is {scoring.refresh_every_n_iterations}"
        raise UserError(f"InfluenceFilter.score_at: {score_at}, {found}; set it to 1")
    # Of a few rows, agreement between groups of the target says nothing, and its cost would come with each step.
    return replace(scoring, health_every_n_iterations=0)


class MinibatchScores:
    """Filters each minibatch of an iteration, and adds up what the log shows of them.

    Args:
        selector: changes the plan of a minibatch.
    """

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._rollout: UpdatePlan | None = None
        self._numbers = Accumulation()
        self._count = 0

    def begin(self, plan: UpdatePlan | None) -> None:
        """Begin an iteration.

        Args:
            plan: of the rollout, which gets the numbers for the log; None for an iteration without filtering.
        """
        self._rollout, self._numbers, self._count = plan, Accumulation(), 0

    def change(self, plan: UpdatePlan, *, module: Any, trainer: Any, iteration: int) -> None:
        """Score and select the rows of a minibatch.

        Args:
            plan: of the minibatch, perhaps without a row on this rank.
            module: under training.
            trainer: a `lightning.Trainer` or `FabricLoop`.
            iteration: counted from 0.
        """
        # Of all ranks, because they score together. A target from rows that are all dropped would have no gradient.
        if self._rollout is None or not any_rank(bool(plan.keep.any()), device=plan.weights.device):
            return
        number, self._count = self._count, self._count + 1
        weights = self.decided(plan, module=module, trainer=trainer, iteration=iteration, minibatch=number)
        self._rollout.metrics.update(self._numbers.together(plan.metrics, weights, rows=len(plan.weights)))

    def decided(self, plan: UpdatePlan, *, module: Any, trainer: Any, iteration: int, minibatch: int) -> Tensor | None:
        """Change the plan of a minibatch; return the factors of all ranks' weights, None if weights stay.

        Args:
            plan: as in `change`.
            module: as in `change`.
            trainer: as in `change`.
            iteration: as in `change`.
            minibatch: number of the optimizer step in its iteration.
        """
        return self.selector.change(plan, module=module, trainer=trainer, iteration=iteration, minibatch=minibatch)
