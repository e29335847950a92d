"""Which rows of an optimizer step the gradient of each layer is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Sharing = Callable[[Mapping[str, tuple[Tensor, float]]], AbstractContextManager[None]]
"""Makes gradients of some rows in the forward and backward of a pass: parameter name to the pass's rows, bool, and a
factor of their sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """A choice of rows for each layer; parameters of no layer learn from all rows."""

    keep: Tensor
    """[layers, rows] bool, False for a row that the layer does not learn from."""
    layer_of: Mapping[str, int]
    """Parameter name to the number of its layer."""
    parameters: Mapping[str, nn.Parameter]
    """The same names to the parameters."""
    sharing: Sharing

    def placed(self, places: Tensor, *, num_rows: int) -> LayerRows:
        """Return the same choice for rows that are a part of others.

        Args:
            places: positions of the rows among the others, shape [rows], int64.
            num_rows: number of the others; rows that are not placed count nowhere.
        """
        keep = torch.zeros(len(self.keep), num_rows, dtype=torch.bool, device=places.device)
        keep[:, places] = self.keep.to(places.device)
        return replace(self, keep=keep)
