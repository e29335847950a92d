"""Metrics of the reward of sampled responses: its mean, and those of its named parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.functional import fraction
from ippo_lightning.metrics.lengths import LengthMetrics

REWARD = "reward"
MAX_MEANS = 33
"""Numbers of one reward: its sum, and its parts."""
MAX_NAME = 48
"""Characters of the name of one."""
# Not 0, which is the code of a character.
_NO_CHARACTER = -1.0


class MeanReward(Metric):
    """Mean of the rewards that are finite; NaN without any.

    Example:
        >>> metric = MeanReward()
        >>> metric.update(torch.tensor([1.0, float("nan"), 0.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    total: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rewards: Tensor) -> None:
        """Add responses.

        Args:
            rewards: shape [rows].
        """
        finite = rewards[rewards.isfinite()]
        # Python adds in double precision; the state has to be single, because some devices have no other
        self.total += float(finite.double().sum())
        self.num_responses += finite.numel()

    def compute(self) -> Tensor:
        """Return the mean, in units of the reward, shape []."""
        return fraction(self.total, self.num_responses)


class NamedMeans(Metric):
    """Mean of each of several named numbers where it is finite; NaN if it never is, no entries if there are none.

    Ranks need not have seen the same names, and a rank may have seen nothing: all of them compute the same.

    Raises:
        UserError: in `update`, a name is too long; more names than `MAX_MEANS`.

    Example:
        >>> metric = NamedMeans()
        >>> metric.update({"reward": torch.tensor([1.0, 2.0]), "reward/short": torch.tensor([-1.0, float("nan")])})
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'reward': 1.5, 'reward/short': -1.0}
    """

    full_state_update = False
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        # One fixed shape with the names in it as numbers, as in `LabelFractions`.
        self.add_state("table", _table({}), dist_reduce_fx=_merged)

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add responses.

        Args:
            values: by name, shape [rows] each.
        """
        found = {}
        for name, numbers in values.items():
            if not 0 < len(name) <= MAX_NAME:
                raise UserError(f"metrics.names: {name!r:.60} is no name; expected 1 to {MAX_NAME} characters")
            finite = numbers[numbers.isfinite()]
            found[name] = (float(finite.double().sum()), float(finite.numel()))
        self.table = _table(_sums([self.table, _table(found)])).to(self.table)

    def compute(self) -> dict[str, Tensor]:
        """Return the means by name, in the order in which they came."""
        return {
            name: fraction(self.table.new_tensor(total), self.table.new_tensor(count))
            for name, (total, count) in _sums([self.table]).items()
        }


def _merged(tables: Tensor) -> Tensor:
    """Return one table from those of several ranks, shape [ranks, MAX_MEANS, 3 + MAX_NAME]."""
    return _table(_sums(list(tables))).to(tables)


def _table(sums: Mapping[str, tuple[float, float]]) -> Tensor:
    """Return one row per name: 1.0, the sum, the count, then the characters; float32, which all devices have."""
    if len(sums) > MAX_MEANS:
        raise UserError(f"metrics.names: {len(sums)} different names; expected at most {MAX_MEANS}")
    table = torch.full((MAX_MEANS, 3 + MAX_NAME), _NO_CHARACTER)
    table[:, 0] = 0
    for row, (name, (total, count)) in enumerate(sums.items()):
        table[row, : 3 + len(name)] = torch.tensor([1.0, total, count, *map(ord, name)])
    return table


def _sums(tables: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Return what `_table` was made from, added over tables."""
    found: dict[str, tuple[float, float]] = {}
    for row in (row for table in tables for row in table.tolist() if row[0] > 0):
        name = "".join(chr(int(code)) for code in row[3:] if code != _NO_CHARACTER)
        total, count = found.get(name, (0.0, 0.0))
        found[name] = (total + row[1], count + row[2])
    return found


def named_rewards(rewards: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the numbers of a reward by the names that they have in an evaluation.

    Args:
        rewards: shape [rows].
        parts: shape [rows] each; empty for a reward without named parts.
    """
    return {REWARD: rewards, **{f"{REWARD}/{name}": values for name, values in parts.items()}}


class RewardMetrics(LengthMetrics):
    """What an evaluation without a grader gives: `reward`, the mean over the responses of all ranks, and lengths.

    A reward with named parts also has `reward/<name>`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reward = MeanReward()
        self.parts = NamedMeans()

    def update(
        self,
        rewards: Tensor,
        *,
        parts: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        truncated: Tensor | None = None,
    ) -> None:
        """Add responses.

        Args:
            rewards: shape [rows].
            parts: by name, shape [rows] each; None for a reward without named parts.
            lengths: tokens of each response, int64; None if unknown.
            truncated: whether the length limit cut each response off, bool; None if unknown.
        """
        self.reward.update(rewards)
        self.parts.update({name: values for name, values in named_rewards(rewards, parts or {}).items() if parts})
        self.update_lengths(lengths, truncated)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN without responses."""
        named = {name: float(value) for name, value in self.parts.compute().items()}
        return {**named, REWARD: float(self.reward.compute()), **self.compute_lengths()}

    def reset(self) -> None:
        """Set all sums and counts to 0."""
        self.reward.reset()
        self.parts.reset()
        self.reset_lengths()
