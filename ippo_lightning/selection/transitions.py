"""Rules for transitions of environments that read no scores: the baselines beside the filter of IIF."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import discounted_returns
from ippo_lightning.records import ControlEpisodes, Episodes
from ippo_lightning.selection.rules import SelectionRule
from ippo_lightning.selection.table import RolloutTable

Heuristic = Literal["sign", "size"]
Baseline = Literal["critic", "states"]
_Rule = TypeVar("_Rule", bound="_DiscountedRule")


@dataclass(frozen=True, kw_only=True)
class _DiscountedRule(SelectionRule):
    """A rule for transitions that discounts as the module's advantages do."""

    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None:
            require_range("rule.gamma", self.gamma, at_least=0, at_most=1)

    def fitted(self: _Rule, module: Any) -> _Rule:
        """Return the rule with the discount of the module's advantages."""
        return replace(self, gamma=_discount(self, self.gamma, module))


@dataclass(frozen=True, kw_only=True)
class AdvantageHeuristic(_DiscountedRule):
    """Drop transitions whose advantage disagrees with a Monte-Carlo estimate, the largest differences first.

    The estimate is the discounted return from the step on, minus a baseline. A return that the end of the rollout or a
    limit cuts goes on with the critic's value; the released code of the paper takes 0 at the end of a rollout.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), the two advantage heuristics among its baselines.

    Args:
        by: `sign` drops where advantage and estimate have different signs, `size` where they differ most.
        fraction: at most this fraction of all transitions is dropped, in [0, 1], rounded down; null for all with
            different signs, and a quarter by `size`.
        baseline: `critic` subtracts the critic's value and fits every environment. `states` is the paper's: the mean
            return of all transitions of this rollout with the same observation and action, minus that of all with the
            same observation. It is 0 for an observation that occurs once.
        gamma: discount per step, in [0, 1]; null for that of the module's advantages, and no other is allowed there.

    Raises:
        UserError: an argument out of its range; before the first iteration, another `gamma` than that of the module's
            advantages, or a module of texts.
    """

    by: Heuristic = "sign"
    fraction: float | None = None
    baseline: Baseline = "critic"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("rule.by", self.by, get_args(Heuristic))
        require_choice("rule.baseline", self.baseline, get_args(Baseline))
        if self.fraction is not None:
            require_range("rule.fraction", self.fraction, at_least=0, at_most=1)

    @property
    def needs(self) -> frozenset[str]:
        """Advantages, and the critic's values."""
        return frozenset({"advantages", "values"})

    def own_columns(self, episodes: Episodes) -> Mapping[str, Tensor]:
        """Return the discounted return of each transition, and for `states` numbers of observation and action."""
        rows = _transitions(episodes, rule=self)
        returns = {"monte_carlo_returns": _returns(rows, gamma=_known(self.gamma))}
        if self.baseline == "critic":
            return returns
        actions = _numbers_of(rows.observations, rows.actions)
        return {**returns, "states": _numbers_of(rows.observations), "actions": actions}

    def keep(self, table: RolloutTable) -> Tensor:
        """Return all rows but those that disagree; of equal differences, the first rows are dropped."""
        estimates, difference = self._estimates(table), -self.ranking(table)
        wrong = table.advantages * estimates < 0 if self.by == "sign" else torch.ones_like(estimates, dtype=torch.bool)
        fraction = (1.0 if self.by == "sign" else 0.25) if self.fraction is None else self.fraction
        most = min(math.floor(fraction * len(table)), int(wrong.sum()))
        order = torch.where(wrong, difference, -1.0).argsort(descending=True, stable=True)
        keep = torch.ones_like(wrong)
        keep[order[:most]] = False
        return keep

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return minus the absolute difference of both advantages."""
        return -(table.advantages - self._estimates(table)).abs()

    def _estimates(self, table: RolloutTable) -> Tensor:
        returns = table.own("monte_carlo_returns")
        if self.baseline == "critic":
            return returns - table.values
        return _means(returns, table.own("actions")) - _means(returns, table.own("states"))


@dataclass(frozen=True, kw_only=True)
class TDPriority(_DiscountedRule):
    """Weigh transitions by the rank of their TD error, and drop none.

    weight = (1 / rank)^power; rank 1 has the largest abs(r + gamma * V(s') - V(s)). It is the expectation of drawing
    rows with these probabilities.
    Source: Schaul et al. 2016, arXiv 1511.05952, rank-based prioritisation; a baseline of Hu et al. 2025 (IIF).

    Args:
        power: >= 0; 0 gives all the same weight.
        gamma: discount per step, in [0, 1]; null for that of the module's advantages, and no other is allowed there.

    Raises:
        UserError: a number out of its range; before the first iteration, another `gamma` than that of the module's
            advantages, or a module of texts.
    """

    power: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("rule.power", self.power, at_least=0, below=math.inf)

    def own_columns(self, episodes: Episodes) -> Mapping[str, Tensor]:
        """Return the absolute TD errors."""
        rows, gamma = _transitions(episodes, rule=self), _known(self.gamma)
        # The value after an environment's own end is stored as 0.
        errors = rows.rewards.double() + gamma * rows.next_values.double() - rows.values.double()
        return {"td_errors": errors[:, 0].abs()}

    def keep(self, table: RolloutTable) -> Tensor:
        """Return all rows."""
        return torch.ones(len(table), dtype=torch.bool, device=table.kept.device)

    def weights(self, table: RolloutTable, keep: Tensor) -> Tensor:
        """Return the weight of each rank; of equal errors, the first row has the better rank."""
        errors = table.own("td_errors")
        weights = torch.empty_like(errors)
        ranks = torch.arange(1, len(table) + 1, dtype=errors.dtype, device=errors.device)
        weights[errors.argsort(descending=True, stable=True)] = ranks**-self.power
        return weights


def _transitions(episodes: object, *, rule: SelectionRule) -> ControlEpisodes:
    if not isinstance(episodes, ControlEpisodes) or episodes.mask.shape[1] != 1:
        raise _no_transitions(rule)
    return episodes


def _no_transitions(rule: SelectionRule) -> UserError:
    return UserError(
        f"InfluenceFilter.rule: {type(rule).__name__} is for transitions of environments, as ControlPPOModule has them"
    )


def _discount(rule: SelectionRule, given: float | None, module: Any) -> float | None:
    """Return the discount of a rule: that of the module's advantages, with which its estimates are compared."""
    if module is None:
        return given
    if getattr(module, "evaluates", "episodes") != "episodes":
        raise _no_transitions(rule)
    known = getattr(getattr(module, "advantages", None), "gamma", None)
    if known is None:
        return _known(given)
    if given not in (None, known):
        raise UserError(
            f"rule.gamma: {given:g} of {type(rule).__name__} is not the discount of the advantages; expected "
            f"{known:g}, as in model.advantages, or null"
        )
    return float(known)


def _returns(rows: ControlEpisodes, *, gamma: float) -> Tensor:
    """Return the discounted return from each transition on, shape [rows]."""
    return discounted_returns(
        rewards=rows.rewards[:, 0],
        next_values=rows.next_values[:, 0],
        done=rows.done[:, 0],
        group=rows.group,
        gamma=gamma,
    )


def _known(gamma: float | None) -> float:
    if gamma is None:
        raise UserError("rule.gamma: null, and the module's advantages have no gamma; expected a number in [0, 1]")
    return gamma


def _numbers_of(*columns: Tensor) -> Tensor:
    """Return one number per row, equal where all columns are, on each rank; 48 bits, which float64 represents."""
    parts = [column.flatten(start_dim=1).cpu().numpy() for column in columns]
    digests = [
        hashlib.blake2b(b"".join(part[row].tobytes() for part in parts), digest_size=6).digest()
        for row in range(len(parts[0]))
    ]
    found = torch.tensor([int.from_bytes(digest, "big") for digest in digests], dtype=torch.float64)
    return found.to(columns[0].device)


def _means(values: Tensor, groups: Tensor) -> Tensor:
    """Return for each row the mean over the rows of its group, shape [rows]."""
    names, places = groups.unique(return_inverse=True)
    sums = values.new_zeros(len(names)).index_add(0, places, values)
    counts = values.new_zeros(len(names)).index_add(0, places, torch.ones_like(values))
    return (sums / counts)[places]
