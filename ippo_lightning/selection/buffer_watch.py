"""Whether the buffer that was filtered is the one that the training step learned from."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.selection.buffer_view import WEIGHTS, BufferView, items_of
from ippo_lightning.selection.module_interface import ModuleInterface

_INSTEAD = "call influence.apply(module, buffer) between rollout and update, or roll out before the batch begins"


class _Seen(NamedTuple):
    """A tensor as the filter left it. It is not kept alive: a buffer may be as large as the memory."""

    tensor: weakref.ReferenceType[Tensor]
    version: int
    rows: int


class _Left(NamedTuple):
    """A buffer as filters left it for one batch."""

    tensors: dict[Any, _Seen]
    by: frozenset[BufferWatch]


_LEFT: weakref.WeakKeyDictionary[Any, _Left] = weakref.WeakKeyDictionary()
"""By module, so that a filter does not take the change of another filter for one of the module."""

DERIVED = frozenset({"advantages", "returns", "values", WEIGHTS})
"""Columns that a step may compute again from the filtered ones, for example to normalise them."""


class BufferWatch:
    """Follows the module's attribute `buffer` from the filter to the end of the batch.

    A hook before `training_step` can filter only what is there by then. A module that makes its buffer later learns
    from rows that were not filtered, while the log claims that they were. So the tensors that the filter left must be
    in the buffer at the end of the batch, and may not be there again when the next batch begins: such a buffer is one
    that was not replaced, so either the update does not read it or it would be filtered twice.

    Args:
        interface: finds the buffer.
    """

    def __init__(self, interface: ModuleInterface) -> None:
        self.interface = interface
        self.is_off = False
        """True once the project itself calls the filter after its rollout; the hooks then leave its buffer alone."""

    def begin(self, pl_module: Any, batch: Any) -> BufferView | None:
        """Return the buffer to filter when a batch begins, None if there is none.

        Raises:
            UserError: the buffer is the one that was filtered for the batch before.
        """
        if self.is_off or not self.interface.has_buffer(pl_module):
            return None
        raw = self.interface.buffer(pl_module, batch)
        # an empty container is a buffer that is not filled yet; `end` checks whether it is by then
        if raw is None or (isinstance(raw, (dict, list)) and not raw):
            _LEFT.pop(pl_module, None)
            return None
        left = _LEFT.get(pl_module)
        if left is None or self not in left.by:  # first batch, or another filter has just filtered this one
            return BufferView(raw)
        del _LEFT[pl_module]
        # the batch itself cannot be out of date, even if a loader gives the same tensors in each epoch
        if raw is not batch and _is_unchanged(raw, left.tensors):
            raise UserError(
                "InfluenceFilter.buffer: this batch begins with the buffer of the batch before, so the update does not "
                f"read it, or it would be filtered twice; {_INSTEAD}"
            )
        return BufferView(raw)

    def leave(self, pl_module: Any, raw: Any) -> None:
        """Remember the tensors of a buffer after it was filtered."""
        left = _LEFT.get(pl_module)
        _LEFT[pl_module] = _Left(_seen(raw), frozenset({self}) | (left.by if left is not None else frozenset()))

    def end(self, pl_module: Any, batch: Any) -> None:
        """Check at the end of a batch that its buffer is still the one that was filtered.

        Columns that are gone are all right: a step may empty its buffer once it has learned from it.

        Raises:
            UserError: the buffer was made or replaced after the filter.
        """
        if self.is_off or not self.interface.has_buffer(pl_module):
            return
        now = _seen(self.interface.buffer(pl_module, batch))
        if pl_module not in _LEFT:
            if now:
                raise UserError(f"InfluenceFilter.buffer: the module made it after the filter had run; {_INSTEAD}")
            return
        left = _LEFT[pl_module].tensors
        common = [key for key in now if key in left]
        replaced = [key for key in common if now[key].tensor() is not left[key].tensor()]
        changed = [key for key in common if key not in replaced and now[key].version > left[key].version]
        if any(key not in DERIVED or now[key].rows != left[key].rows for key in replaced):
            raise UserError(f"InfluenceFilter.buffer: the module replaced it after it was filtered; {_INSTEAD}")
        # A step may normalise one column in place. Several, or the only one, are a new rollout, also if a column that
        # does not change between rollouts, such as a mask, stays as it is.
        refilled = [key for key in changed if key not in DERIVED]
        if len(refilled) > 1 or (refilled and len([key for key in common if key != WEIGHTS]) == 1):
            raise UserError(f"InfluenceFilter.buffer: the module filled it again after it was filtered; {_INSTEAD}")


def _is_unchanged(raw: Any, left: Mapping[Any, _Seen]) -> bool:
    now = _seen(raw)
    data = [key for key in now if key != WEIGHTS]  # the filter itself writes new weights
    return bool(data) and all(
        key in left and now[key].tensor() is left[key].tensor() and now[key].version == left[key].version
        for key in data
    )


def _seen(raw: Any) -> dict[Any, _Seen]:
    if not isinstance(raw, (Mapping, list)):
        return {}
    return {
        key: _Seen(weakref.ref(value), 0 if value.is_inference() else value._version, len(value))  # inference: no count
        for key, value in items_of(raw)
        if isinstance(value, Tensor) and value.ndim
    }
