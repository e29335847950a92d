"""The buffer of a project that is not ours: columns of equal length, read and filtered in place."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError

WEIGHTS = "weights"
"""A mapping with this column is weighted; any other buffer loses the rows that are dropped."""


class Columns:
    """Rows of a mapping or list of columns, as the influence filter sees episodes.

    Args:
        raw: a mutable mapping or a list; tensors and lists as long as its first tensor are columns, anything else is
            left alone.

    Raises:
        UserError: another type, or no tensor in it.
    """

    def __init__(self, raw: Any) -> None:
        if not isinstance(raw, (MutableMapping, list)):
            raise UserError(
                f"InfluenceFilter.buffer: a {type(raw).__name__} cannot be filtered in place; expected a dictionary or "
                "a list of columns, of one tensor at least"
            )
        self.raw: Any = raw
        tensors = [value for _, value in self._items() if isinstance(value, Tensor) and value.ndim]
        if not tensors:
            raise UserError("InfluenceFilter.buffer: holds no tensor; expected columns with one row an episode")
        self.device = tensors[0].device
        self._count = len(tensors[0])

    def __len__(self) -> int:
        return self._count

    @property
    def has_weights(self) -> bool:
        """Whether the project reads weights."""
        return isinstance(self.raw, Mapping) and WEIGHTS in self.raw

    @property
    def lengths(self) -> Tensor:
        """[rows] int64, from the column `lengths`."""
        return self._named("lengths", "normalise: length").long()

    def cost(self) -> Tensor:
        """Return [rows] int64, what a row takes of `scoring.max_tokens`: its `lengths`, or one."""
        if isinstance(self.raw, Mapping) and "lengths" in self.raw:
            return self.lengths
        return torch.ones(len(self), dtype=torch.long, device=self.device)

    @property
    def outcome_rewards(self) -> Tensor:
        """[rows], from the column `rewards`."""
        return self._named("rewards", "rule: reward").float().reshape(len(self), -1).sum(dim=1)

    @property
    def advantages(self) -> Tensor:
        """[rows, steps], from the column `advantages`."""
        return self._named("advantages", "rule: advantage_sign").float().reshape(len(self), -1)

    @property
    def mask(self) -> Tensor:
        """[rows, steps], True everywhere."""
        return torch.ones_like(self.advantages, dtype=torch.bool)

    def select(self, index: Tensor | Sequence[int]) -> Any:
        """Return the rows at `index` in a buffer of the same kind, for the project's own functions."""
        rows = torch.as_tensor(index, device=self.device)
        cut = {key: self._cut(value, rows) for key, value in self._items()}
        return list(cut.values()) if isinstance(self.raw, list) else cut

    def apply(self, weights: Tensor) -> None:
        """Write the weights into their column, or drop the rows of weight zero.

        Args:
            weights: shape [rows].
        """
        if self.has_weights:
            column = self._named(WEIGHTS, "power")
            self.raw[WEIGHTS] = weights.to(column).reshape(column.shape)
            return
        kept = (weights > 0).nonzero().flatten()
        for key, value in self._items():
            self.raw[key] = self._cut(value, kept)

    def _items(self) -> list[tuple[Any, Any]]:
        return list(enumerate(self.raw)) if isinstance(self.raw, list) else list(self.raw.items())

    def _cut(self, value: Any, rows: Tensor) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == len(self):
            return value[rows.to(value.device)]
        if isinstance(value, (list, tuple)) and len(value) == len(self):
            return type(value)(value[row] for row in rows.tolist())
        return value

    def _named(self, name: str, wanted_by: str) -> Tensor:
        value = self.raw.get(name) if isinstance(self.raw, Mapping) else None
        if not isinstance(value, Tensor) or len(value) != len(self):
            raise UserError(f"InfluenceFilter.{wanted_by} needs a column {name!r} of {len(self)} rows in the buffer")
        return value
