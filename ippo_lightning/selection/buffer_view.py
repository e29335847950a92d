"""The buffer of a project that is not ours: columns of equal length, read and filtered in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.errors import UserError

WEIGHTS = "weights"
"""A mapping with this column is weighted; any other buffer loses the rows that are dropped."""


class _Written(NamedTuple):
    """Which filters made a column of weights; lies on the tensor that they wrote."""

    version: int
    """Of that tensor: another one means that the project has changed it since."""
    by: frozenset[object]
    """Tokens of the filters that wrote since."""


_MARK = "_ippo_written"


class BufferView:
    """A mapping or list of columns, seen as `Episodes`: the same names, read from columns of the same names.

    Args:
        raw: a mutable mapping or a list. Tensors and lists as long as its first tensor are columns; anything else is
            left alone.

    Raises:
        UserError: another type, or no tensor in it.
    """

    row_name: ClassVar[str] = "row"

    def __init__(self, raw: Any) -> None:
        if not isinstance(raw, (MutableMapping, list)):
            raise UserError(
                f"InfluenceFilter.buffer: a {type(raw).__name__} cannot be filtered in place; expected a dictionary or "
                "a list of columns, with at least one tensor"
            )
        self.raw: Any = raw
        # a tensor without axes describes the whole buffer, so it is no column
        tensors = [value for _, value in items_of(raw) if isinstance(value, Tensor) and value.ndim]
        if not tensors:
            raise UserError("InfluenceFilter.buffer: it contains no tensor; expected columns with one entry per row")
        self.device = tensors[0].device
        self._count = len(tensors[0])

    def __len__(self) -> int:
        return self._count

    @property
    def has_weights(self) -> bool:
        """Whether the project reads weights."""
        return isinstance(self.raw, Mapping) and WEIGHTS in self.raw

    @property
    def mask(self) -> Tensor:
        """[rows, steps] bool: the column `mask`, which may have holes; without one, each step of `advantages`."""
        if self._has("mask"):
            return _by_row(self._named("mask", "rule").bool())
        width = self._advantages.shape[1] if self._has("advantages") else 1
        return torch.ones(len(self), width, dtype=torch.bool, device=self.device)

    @property
    def advantages(self) -> Tensor:
        """[rows, steps], from the column `advantages`; one number per row counts for each of its steps."""
        return self._per_step(self._advantages, "advantages")

    @property
    def values(self) -> Tensor:
        """[rows, steps], from the column `values`."""
        return self._per_step(_by_row(self._named("values", "rule").float()), "values")

    @property
    def outcome_rewards(self) -> Tensor:
        """[rows], from the column `rewards`, summed over the steps that count."""
        rewards = _by_row(self._named("rewards", "rule: reward").float())
        # one number per row has no steps to mask
        if self._has("mask") and rewards.shape == self.mask.shape:
            rewards = torch.where(self.mask, rewards, 0.0)
        return rewards.sum(dim=1)

    @property
    def group(self) -> Tensor:
        """[rows] int64, from the column `group`."""
        return self._named("group", "rule").long()

    @property
    def lengths(self) -> Tensor:
        """[rows] int64, how many steps of each row count: the column `lengths`, or from the column `mask`."""
        if not self._has("lengths") and self._has("mask"):
            return self.mask.sum(dim=1)
        return self._named("lengths", "normalise: length").long()

    def cost(self) -> Tensor:
        """Return what each row takes of `scoring.max_tokens`, shape [rows], int64: its steps, or 1 if unknown."""
        if self._has("mask"):
            steps = torch.arange(1, self.mask.shape[1] + 1, device=self.device)
            return (self.mask * steps).amax(dim=1)  # up to the last step that counts, holes included
        return self.lengths if self._has("lengths") else torch.ones(len(self), dtype=torch.long, device=self.device)

    def describe(self, row: int) -> str:
        """Return the row's number, for messages."""
        return f"row {row} of the buffer"

    def select(self, index: Tensor | Sequence[int]) -> Any:
        """Return the rows at `index` in a buffer of the same kind, for the project's own functions."""
        rows = torch.as_tensor(index, device=self.device)
        cut = {key: self._cut(value, rows) for key, value in items_of(self.raw)}
        return list(cut.values()) if isinstance(self.raw, list) else cut

    def weights_before(self, owner: object) -> Tensor:
        """Return the weights that a filter starts from, shape [rows]: those of another filter for this update, or ones.

        So several filters stack, and the weights of an earlier update are not multiplied again. The project's own
        content of the column is a placeholder and is not read.

        Args:
            owner: token of the filter.
        """
        column = self._named(WEIGHTS, "power") if self.has_weights else None
        written = None if column is None else _written(column)
        if column is None or written is None or owner in written.by:
            return torch.ones(len(self), device=self.device)
        # the column may have the shape [rows] or [rows, 1]
        return _by_row(column)[:, 0].float()

    def write(self, weights: Tensor, owner: object) -> None:
        """Write the weights into their column, or take the rows of weight zero out of the buffer.

        Args:
            weights: shape [rows].
            owner: token of the filter.
        """
        if self.has_weights:
            column = self._named(WEIGHTS, "power")
            written = _written(column)
            # a filter that finds its own mark begins another update, for which the earlier marks do not count
            others = written.by if written is not None and owner not in written.by else frozenset()
            # cloned: `to` and `reshape` may return the plan's own weights, which the project could then change in place
            filled = weights.to(column).reshape(column.shape).clone()
            setattr(filled, _MARK, _Written(_version(filled), others | {owner}))
            self.raw[WEIGHTS] = filled
            return
        if bool((weights > 0).all()):  # a copy of each column would cost memory for nothing
            return
        kept = (weights > 0).nonzero().flatten()
        for key, value in items_of(self.raw):
            self.raw[key] = self._cut(value, kept)
        self._count = len(kept)  # after the loop: each column is recognised by the old length

    @property
    def _advantages(self) -> Tensor:
        return _by_row(self._named("advantages", "rule: advantage_sign").float())

    def _per_step(self, values: Tensor, name: str) -> Tensor:
        shape = self.mask.shape
        if values.shape[1] not in (1, shape[1]):
            expected = f"{list(shape)}, as the column 'mask', or one number per row"
            raise UserError(
                f"InfluenceFilter.buffer: column {name!r} has shape {list(values.shape)}; expected {expected}"
            )
        return values.expand(shape)

    def _has(self, name: str) -> bool:
        return isinstance(self.raw, Mapping) and name in self.raw

    def _cut(self, value: Any, rows: Tensor) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == len(self):
            return value[rows.to(value.device)]
        if isinstance(value, (list, tuple)) and len(value) == len(self):
            return type(value)(value[row] for row in rows.tolist())
        return value

    def _named(self, name: str, wanted_by: str) -> Tensor:
        value = self.raw.get(name) if isinstance(self.raw, Mapping) else None
        if not isinstance(value, Tensor) or not value.ndim or len(value) != len(self):
            raise UserError(f"InfluenceFilter.{wanted_by} needs a column {name!r} of {len(self)} rows in the buffer")
        return value


def _by_row(value: Tensor) -> Tensor:
    # the width is counted, because torch cannot infer it for 0 rows: another filter may have left a rank none
    return value.reshape(len(value), math.prod(value.shape[1:]))


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version  # inference tensors count nothing


def _written(column: Tensor) -> _Written | None:
    """Return what filters wrote into a column, None if the project has changed or replaced it since."""
    found: _Written | None = getattr(column, _MARK, None)
    return found if found is not None and found.version == _version(column) else None


def items_of(raw: Any) -> list[tuple[Any, Any]]:
    """Return key and column of each entry of a mapping or list."""
    return list(enumerate(raw)) if isinstance(raw, list) else list(raw.items())
