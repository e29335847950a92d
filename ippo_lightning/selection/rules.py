"""Rules: which rows of a rollout are kept, and what they weigh."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import (
    keep_above,
    keep_above_mean_reward,
    keep_at_least,
    keep_random,
    normalise_weights,
    score_power,
)
from ippo_lightning.records import Episodes
from ippo_lightning.selection.table import NEEDS, RolloutTable
from ippo_lightning.selection.whole_groups import WholeGroups, by_group

RuleName = Literal["influence", "random", "advantage_sign", "reward"]


class SelectionRule(ABC):
    """Decides which rows are kept. A subclass writes `needs` and `keep`; the rest has defaults.

    The rule sees the rows of all ranks, without those that another callback has dropped: a mean over the table is a
    mean over what is still in the update. It must decide the same on each rank, so it may draw random numbers only
    from a generator with a fixed seed.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Columns that the rule reads; others are not computed.

        Names: "scores", "rewards", "advantages", "groups", "values", "lengths".

        Without "scores" there is no scoring, and no demonstrations are necessary.
        """
        return frozenset()

    def own_columns(self, episodes: Episodes) -> Mapping[str, Tensor]:
        """Return columns of the rule's own, name to shape [rows], which `table.own(name)` then has of all ranks.

        For what needs the neighbours of a row: the table itself lacks rows that another callback has dropped.

        Args:
            episodes: all rows of this rank, in the order of the rollout.
        """
        return {}

    def fitted(self, module: Any) -> SelectionRule:
        """Return the rule with the numbers that it shares with the module's algorithm; most rules share none.

        Args:
            module: about to be trained; None outside of a run.

        Raises:
            UserError: the rule contradicts the module.
        """
        return self

    def doubt(self, module: Any) -> str:
        """Return in one line why the rule may drop nothing of a module about to be trained; empty without doubt."""
        return ""

    @property
    def name(self) -> str:
        """What plans, logs and reports call the rule."""
        return type(self).__name__

    @property
    def scales(self) -> bool:
        """Whether kept rows can have different weights."""
        # a rule without weights of its own also works on a buffer that has no column for them
        return type(self).weights is not SelectionRule.weights

    @abstractmethod
    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rows are kept, shape [rows], bool."""

    def weights(self, table: RolloutTable, keep: Tensor) -> Tensor:
        """Return what each kept row weighs, shape [rows], >= 0; the filter scales them to mean 1.

        Args:
            table: what the rule decided from.
            keep: the final decision, shape [rows], bool.
        """
        return keep.double()

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return a number per row, shape [rows]: under `min_keep` the dropped rows with the highest come back first."""
        # of equal numbers the first rows come back first, on all ranks alike
        return table.scores if table.has("scores") else torch.zeros(len(table), device=table.kept.device)


@dataclass(frozen=True, kw_only=True)
class Influence(SelectionRule):
    """Keep rows whose gradient agrees with the target's; weigh them by the score.

    Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597.

    Args:
        threshold: scores up to and including it are dropped, in units of the scores.
        power: exponent of the score in the weight, >= 0: 1 as in the paper, 0 for equal weights.

    Raises:
        UserError: a number out of its range.
    """

    threshold: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        require_range("rule.threshold", self.threshold)
        require_range("rule.power", self.power, at_least=0, below=math.inf)

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return frozenset({"scores"})

    @property
    def name(self) -> str:
        """The short name."""
        return "influence"

    @property
    def scales(self) -> bool:
        """Whether the power is above 0."""
        return self.power > 0

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which scores lie above the threshold."""
        return keep_above(scores=table.scores, threshold=self.threshold)

    def weights(self, table: RolloutTable, keep: Tensor) -> Tensor:
        """Return score^power."""
        return score_power(scores=table.scores, keep=keep, power=self.power)


@dataclass(frozen=True, kw_only=True)
class Random(SelectionRule):
    """Keep random rows: the control that shows whether a rule is better than chance.

    Args:
        fraction: fraction of the rows that is kept, in [0, 1]; null for as many as `Influence` would keep, which needs
            scores.
        seed: of the draws; each iteration draws again.
        threshold: that of `Influence`, if `fraction` is null.

    Raises:
        UserError: a fraction out of its range.
    """

    fraction: float | None = None
    seed: int = 0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.fraction is not None:
            require_range("rule.fraction", self.fraction, at_least=0, at_most=1)

    @property
    def needs(self) -> frozenset[str]:
        """Scores if no fraction is given: they tell how many rows are kept."""
        return frozenset({"scores"}) if self.fraction is None else frozenset()

    @property
    def name(self) -> str:
        """The short name."""
        return "random"

    def keep(self, table: RolloutTable) -> Tensor:
        """Return a random choice."""
        if self.fraction is None:
            num_kept = int(keep_above(scores=table.scores, threshold=self.threshold).sum())
        else:
            # of the candidates, not of all rows: what another callback has dropped is not counted twice
            num_kept = round(self.fraction * len(table))
        # large factors, so that the next seed or micro-batch does not repeat the draw of another iteration
        seed = self.seed * 1_000_003 + table.iteration + 1_000_000_007 * table.part
        # a generator of its own, so that the run's random stream stays that of plain PPO, equal on all ranks
        generator = torch.Generator().manual_seed(seed)
        return keep_random(num_episodes=len(table), num_kept=num_kept, generator=generator)


@dataclass(frozen=True, kw_only=True)
class AdvantageSign(SelectionRule):
    """Keep rows with a mean advantage above 0. No scores, no demonstrations."""

    @property
    def needs(self) -> frozenset[str]:
        """Advantages."""
        return frozenset({"advantages"})

    @property
    def name(self) -> str:
        """The short name."""
        return "advantage_sign"

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which mean advantages are positive."""
        return table.advantages > 0

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return the mean advantages."""
        return table.advantages


@dataclass(frozen=True, kw_only=True)
class AboveMeanReward(SelectionRule):
    """Keep rows with an outcome reward above the mean of all ranks. No scores, no demonstrations."""

    @property
    def needs(self) -> frozenset[str]:
        """Rewards."""
        return frozenset({"rewards"})

    @property
    def name(self) -> str:
        """The short name."""
        return "reward"

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rewards are above the mean."""
        return keep_above_mean_reward(outcome_rewards=table.rewards, mean_reward=table.rewards.mean())

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return the rewards."""
        return table.rewards


def build_rule(
    rule: RuleName | SelectionRule, *, threshold: float | None, power: float | None, seed: int | None
) -> SelectionRule:
    """Return the rule of a short name, or the object itself.

    Args:
        rule: a short name, or a rule.
        threshold: of a rule with a short name that has one; None for its default.
        power: likewise.
        seed: likewise.

    Raises:
        UserError: an unknown name, an object that is no rule, a number out of its range, or a number beside an object.
    """
    given = {"threshold": threshold, "power": power, "seed": seed}
    numbers = {name: value for name, value in given.items() if value is not None}
    if isinstance(rule, SelectionRule):
        for name, value in numbers.items():
            kind = type(rule).__name__
            raise UserError(f"InfluenceFilter.{name}: {value:g} is for a rule with a short name; pass it to {kind}")
        return _checked_rule(rule)
    if rule not in get_args(RuleName):
        names = ", ".join(get_args(RuleName))
        raise UserError(f"InfluenceFilter.rule: {rule!r} is unknown; expected one of {names}, or a SelectionRule")
    # the user wrote the filter's argument, so the message names that one and not the rule's
    require_range("InfluenceFilter.power", 1.0 if power is None else power, at_least=0)
    # numbers that a rule does not have are ignored, so that one YAML can switch between the short names
    if rule == "influence":
        return Influence(**{name: value for name, value in numbers.items() if name != "seed"})
    if rule == "random":
        return Random(threshold=threshold or 0.0, seed=seed or 0)
    return AdvantageSign() if rule == "advantage_sign" else AboveMeanReward()


def decide(
    rule: SelectionRule,
    table: RolloutTable,
    *,
    min_keep: int,
    max_weight: float | None,
    whole_groups: WholeGroups | None = None,
) -> Tensor:
    """Return the factor of each row's weight: 0 if the rule drops it, with mean 1 over the rows that are kept.

    Args:
        rule: sees only the rows that may still be kept.
        table: of all ranks.
        min_keep: at least so many are kept, rows or groups; dropped ones come back by the rule's ranking.
        max_weight: cap of a factor, >= 1; None for none.
        whole_groups: how the columns of a group become one row that the rule sees; None to decide row by row.

    Returns:
        Shape [rows], float64; 0 for rows that another callback has dropped.

    Raises:
        UserError: the rule returned something other than a mask, weights or a ranking.
    """
    factors = torch.zeros(len(table), dtype=torch.float64, device=table.kept.device)
    places = (table.kept & ~table.force_drop).nonzero().flatten()
    if not len(places):
        return factors
    # the rule sees only candidates, so its means and counts are over what can still be in the update
    candidates = table.select(places)
    members: Tensor | slice = slice(None)
    if whole_groups is not None:
        candidates, members = by_group(candidates, how=whole_groups)
    chosen = _checked(rule.keep(candidates), candidates, method=f"{type(rule).__name__}.keep", is_mask=True)
    # force_keep comes on top of min_keep: those rows are kept in any case and do not use up its places
    keep = candidates.force_keep | keep_at_least(scores=_ranking(rule, candidates), keep=chosen, min_keep=min_keep)
    raw = _checked(rule.weights(candidates, keep), candidates, method=f"{type(rule).__name__}.weights", is_mask=False)
    # a rule need not set the weights of dropped rows to 0
    raw = torch.where(keep, raw.double(), 0.0)
    least = min(min_keep, len(candidates))
    if int((raw > 0).sum()) < least:
        raise UserError(f"{type(rule).__name__}.weights: 0 for rows that min_keep: {min_keep} keeps; expected > 0")
    # scaled last, so that the mean is 1 over the rows that are kept in the end
    factors[places] = normalise_weights(raw=raw[members], keep=keep[members], max_weight=max_weight)
    return factors


def _checked_rule(rule: SelectionRule) -> SelectionRule:
    if not isinstance(rule.needs, (set, frozenset)):
        raise UserError(f"{type(rule).__name__}.needs: got {rule.needs!r}; expected a frozenset of names")
    unknown = sorted(rule.needs - NEEDS)
    if unknown:
        known = ", ".join(sorted(NEEDS))
        raise UserError(f"{type(rule).__name__}.needs: {unknown[0]!r} is unknown; expected names from {known}")
    return rule


def _ranking(rule: SelectionRule, table: RolloutTable) -> Tensor:
    found, method = rule.ranking(table), f"{type(rule).__name__}.ranking"
    expected = f"a number per row, of shape ({len(table)},)"
    if not isinstance(found, Tensor):
        raise UserError(f"{method}: returned a {type(found).__name__}; expected {expected}")
    if found.shape != (len(table),) or found.is_complex():
        raise UserError(f"{method}: returned {found.dtype} of shape {tuple(found.shape)}; expected {expected}")
    if bool(found.isnan().any()):  # sorted to the front, such a row would come back first
        raise UserError(f"{method}: returned NaN; expected {expected}")
    return found.to(table.kept.device).double()


def _checked(result: Tensor, table: RolloutTable, *, method: str, is_mask: bool) -> Tensor:
    expected = f"{'a mask of bool' if is_mask else 'finite weights >= 0'} of shape ({len(table)},)"
    if not isinstance(result, Tensor):
        raise UserError(f"{method}: returned a {type(result).__name__}; expected {expected}")
    if result.shape != (len(table),) or (result.dtype == torch.bool) != is_mask:
        raise UserError(f"{method}: returned {result.dtype} of shape {tuple(result.shape)}; expected {expected}")
    if not is_mask and not bool((torch.isfinite(result) & (result >= 0)).all()):
        raise UserError(f"{method}: returned a negative weight, NaN or infinity; expected {expected}")
    return result.to(table.kept.device)
