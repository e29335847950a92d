"""Published rules that need no scores: by the rewards of the responses to one prompt, and by length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.errors import require_choice, require_range
from ippo_lightning.maths import rewards_differ
from ippo_lightning.selection.rules import SelectionRule
from ippo_lightning.selection.table import RolloutTable


@dataclass(frozen=True, kw_only=True)
class MaxRewardVariance(SelectionRule):
    """Keep, of the responses to each prompt, those that have the largest variance of rewards together (PODS).

    Of n rewards, the m with the largest variance are the k highest and the m - k lowest for some k.
    Source: arXiv 2504.13818 (PODS). There the advantages are computed from the kept responses; here, as for each rule,
    from all of them.

    Args:
        num_kept: responses per prompt, >= 1; a prompt with fewer keeps all.

    Raises:
        UserError: the number is out of its range.
    """

    num_kept: int = 4

    def __post_init__(self) -> None:
        require_range("rule.num_kept", self.num_kept, at_least=1, integer=True)

    def doubt(self, module: Any) -> str:
        """Return that no prompt has more responses than are kept; a callback may still allocate more of them."""
        sampled = getattr(getattr(module, "sampling", None), "num_responses", None)
        if not isinstance(sampled, int) or self.num_kept < sampled:
            return ""
        return (
            f"rule.num_kept: {self.num_kept}, and sampling.num_responses is {sampled}, so MaxRewardVariance drops "
            "nothing; set num_kept to a smaller number, or num_responses to a larger one, unless a callback allocates "
            "more responses"
        )

    @property
    def needs(self) -> frozenset[str]:
        """Rewards and groups."""
        return frozenset({"rewards", "groups"})

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rows are kept; of equal rewards the first rows count as lower."""
        keep = torch.zeros_like(table.kept)
        for group in table.groups.unique():
            rows = (table.groups == group).nonzero().flatten()
            rows = rows[table.rewards[rows].argsort(stable=True)]
            low = range(min(self.num_kept, len(rows)) + 1)
            choices = [torch.cat([rows[:count], rows[len(rows) - (len(low) - 1 - count) :]]) for count in low]
            # of equal variances the first: it has the most of the highest rewards
            spread = torch.stack([table.rewards[rows].var(unbiased=False) for rows in choices])
            keep[choices[int(spread.argmax())]] = True
        return keep

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return how far each reward is from the mean of its prompt."""
        _, members = table.groups.unique(return_inverse=True)
        sums = torch.zeros(int(members.max()) + 1 if len(members) else 0).to(table.rewards)
        means = sums.index_add(0, members, table.rewards) / members.bincount()
        return (table.rewards - means[members]).abs()


@dataclass(frozen=True, kw_only=True)
class DropEqualRewards(SelectionRule):
    """Drop all responses to a prompt if their rewards are all equal: a group baseline learns nothing from them.

    The iteration gets smaller, and the log shows by how much; `model.dynamic_sampling` samples other prompts in their
    place. Source: arXiv 2503.14476 (DAPO). A prompt with a single response is kept.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Rewards and groups."""
        return frozenset({"rewards", "groups"})

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rows have a prompt with different rewards, or with one response."""
        return rewards_differ(rewards=table.rewards, group=table.groups)


@dataclass(frozen=True, kw_only=True)
class ByLength(SelectionRule):
    """Keep the shortest or the longest rows: the control for a rule that prefers a length without saying so.

    Args:
        fraction: fraction of the rows that is kept, in [0, 1].
        prefer: `shortest` or `longest`; of equal lengths the first rows are kept.

    Raises:
        UserError: a fraction out of its range, or an unknown word.
    """

    fraction: float = 0.5
    prefer: Literal["shortest", "longest"] = "shortest"

    def __post_init__(self) -> None:
        require_range("rule.fraction", self.fraction, at_least=0, at_most=1)
        require_choice("rule.prefer", self.prefer, ("shortest", "longest"))

    @property
    def needs(self) -> frozenset[str]:
        """Lengths."""
        return frozenset({"lengths"})

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rows are kept."""
        keep = torch.zeros_like(table.kept)
        order = self.ranking(table).argsort(descending=True, stable=True)
        keep[order[: round(self.fraction * len(table))]] = True
        return keep

    def ranking(self, table: RolloutTable) -> Tensor:
        """Return the lengths, negative if short rows are preferred."""
        return -table.lengths if self.prefer == "shortest" else table.lengths
