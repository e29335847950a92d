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
        self._left: dict[Any, _Seen] | None = None

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
            self._left = None
            return None
        # the batch itself cannot be out of date, even if a loader gives the same tensors in each epoch
        if raw is not batch and self._is_unchanged(raw):
            raise UserError(
                "InfluenceFilter.buffer: this batch begins with the buffer of the batch before, so the update does not "
                f"read it, or it would be filtered twice; {_INSTEAD}"
            )
        return BufferView(raw)

    def leave(self, raw: Any) -> None:
        """Remember the tensors of a buffer after it was filtered."""
        self._left = _seen(raw)

    def end(self, pl_module: Any, batch: Any) -> None:
        """Check at the end of a batch that its buffer is still the one that was filtered.

        Columns that are gone are all right: a step may empty its buffer once it has learned from it.

        Raises:
            UserError: the buffer was made or replaced after the filter.
        """
        if self.is_off or not self.interface.has_buffer(pl_module):
            return
        raw = self.interface.buffer(pl_module, batch)
        now = _seen(raw)
        if self._left is None and now:
            raise UserError(f"InfluenceFilter.buffer: the module made it after the filter had run; {_INSTEAD}")
        left = self._left or {}
        if any(key in left and seen.tensor() is not left[key].tensor() for key, seen in now.items()):
            raise UserError(f"InfluenceFilter.buffer: the module replaced it after it was filtered; {_INSTEAD}")
        data = [key for key in now if key != WEIGHTS and key in left]
        # one column may be changed in place, advantages that a step normalises; all of them are a new rollout
        if len(data) > 1 and all(now[key].version > left[key].version for key in data):
            raise UserError(f"InfluenceFilter.buffer: the module filled it again after it was filtered; {_INSTEAD}")

    def _is_unchanged(self, raw: Any) -> bool:
        now, left = _seen(raw), self._left or {}
        data = [key for key in now if key != WEIGHTS]  # the filter itself writes new weights
        return bool(data) and all(
            key in left and now[key].tensor() is left[key].tensor() and now[key].version == left[key].version
            for key in data
        )


def _seen(raw: Any) -> dict[Any, _Seen]:
    if not isinstance(raw, (Mapping, list)):
        return {}
    return {
        key: _Seen(weakref.ref(value), 0 if value.is_inference() else value._version)  # inference tensors count nothing
        for key, value in items_of(raw)
        if isinstance(value, Tensor) and value.ndim
    }
