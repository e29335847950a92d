"""From scores to weights, by rule, over the episodes of all ranks."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import gather_rows
from ippo_lightning.errors import UserError
from ippo_lightning.maths import (
    keep_above,
    keep_above_mean_reward,
    keep_at_least,
    keep_positive_advantage,
    keep_random,
    normalise_weights,
    score_power,
)
from ippo_lightning.records import Episodes
from ippo_lightning.selection.buffer_view import Columns

SelectionRule = Literal["influence", "random", "advantage_sign", "reward"]


class Selector:
    """Decides which episodes are kept and what they weigh; arguments as in `InfluenceFilter`."""

    def __init__(
        self, *, rule: SelectionRule, threshold: float, power: float, max_weight: float | None, min_keep: int, seed: int
    ) -> None:
        if rule not in get_args(SelectionRule):
            names = ", ".join(get_args(SelectionRule))
            raise UserError(f"InfluenceFilter.rule: '{rule}' is unknown; expected one of {names}")
        if not power >= 0:
            raise UserError(f"InfluenceFilter.power: {power} is out of range; expected a number >= 0")
        if max_weight is not None and not max_weight >= 1:
            raise UserError(f"InfluenceFilter.max_weight: {max_weight} is out of range; expected a number >= 1")
        if min_keep < 0:
            raise UserError(f"InfluenceFilter.min_keep: {min_keep} is out of range; expected an integer >= 0")
        self.rule: SelectionRule = rule
        self.threshold = threshold
        self.power = power
        self.max_weight = max_weight
        self.min_keep = min_keep
        self.seed = seed

    def weights(
        self,
        *,
        scores: Tensor,
        episodes: Episodes | Columns,
        iteration: int,
        force_keep: Tensor | None = None,
        force_drop: Tensor | None = None,
    ) -> Tensor:
        """Return one weight >= 0 an episode, zero where it is dropped, mean 1 over the kept of all ranks.

        Only `influence` weights by the score; the controls drop and leave the rest as it is. Every rank decides over
        the episodes of all, so the decision is that of one process.

        Args:
            scores: influence scores, shape [rows].
            episodes: with rewards or advantages, where the rule asks for them.
            iteration: makes the random rule draw anew.
            force_keep: shape [rows], bool, True for episodes that are kept whatever their score.
            force_drop: shape [rows], bool, True for episodes that are dropped whatever their score.
        """
        nobody = torch.zeros(len(scores), device=scores.device)
        columns = (
            scores,
            episodes.outcome_rewards if self.rule == "reward" else nobody,
            self._has_positive_advantage(episodes) if self.rule == "advantage_sign" else nobody,
            nobody if force_keep is None else force_keep,
            nobody if force_drop is None else force_drop,
        )
        rows, mine = gather_rows(torch.stack([column.to(scores.device).double() for column in columns], dim=1))
        everyone, rewards, positive_advantage, exempt, excluded = rows.unbind(dim=1)
        keep = (exempt > 0) | self._keep(
            scores=everyone, rewards=rewards, positive_advantage=positive_advantage > 0, iteration=iteration
        )
        keep = keep & (excluded == 0)
        raw = score_power(scores=everyone, keep=keep, power=self.power if self.rule == "influence" else 0.0)
        return normalise_weights(raw=raw, keep=keep, max_weight=self.max_weight)[mine].to(scores.dtype)

    @staticmethod
    def _has_positive_advantage(episodes: Episodes | Columns) -> Tensor:
        return keep_positive_advantage(advantages=episodes.advantages, mask=episodes.mask)

    def _keep(self, *, scores: Tensor, rewards: Tensor, positive_advantage: Tensor, iteration: int) -> Tensor:
        """Return a mask [rows], True where the rule keeps the episode; everything is of all ranks."""
        positive = keep_above(scores=scores, threshold=self.threshold)
        if self.rule == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
            keep = keep_random(num_episodes=len(scores), num_kept=int(positive.sum()), generator=generator)
        elif self.rule == "advantage_sign":
            keep = positive_advantage
        elif self.rule == "reward":
            keep = keep_above_mean_reward(outcome_rewards=rewards, mean_reward=rewards.mean())
        else:
            keep = positive
        return keep_at_least(scores=scores, keep=keep.to(scores.device), min_keep=self.min_keep)
