"""An optimizer step whose layers learn from different rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.engine.denominators import Divisors, row_sizes
from ippo_lightning.engine.load_balancing import Work
from ippo_lightning.engine.settings import UpdateSettings


class LayerStep:
    """What the passes of one optimizer step need for layers that learn from different rows; all ranks make one.

    With `update.denominator: kept`, the gradient of a layer is divided by the rows (or steps) that it learns from, so
    that its size does not depend on how many these are. The losses are divided by all rows of the step, so a layer's
    sum is multiplied by what it lacks.

    Args:
        work: of this rank.
        rows: positions in the work, shape [rows], int64; perhaps none.
        settings: of the update.
        divisors: of the losses.
    """

    def __init__(self, work: Work, rows: Tensor, *, settings: UpdateSettings, divisors: Divisors) -> None:
        self._layers = work.layers
        self._keep = torch.zeros(0, max(len(rows), 1), dtype=torch.bool, device=rows.device)
        self._scales: list[float] = []
        self._is_empty: list[bool] = []
        if self._layers is None:
            return
        num_layers = len(self._layers.keep)
        # A rank without rows runs a placeholder, whose gradient is zero.
        self._keep = self._keep.new_zeros(num_layers, self._keep.shape[1])
        self._keep[:, : len(rows)] = self._layers.keep[:, rows]
        sizes = row_sizes(work.episodes, rows, settings).double() * (work.weights[rows] > 0)
        # Two columns: what divides, and the number of rows, for a layer whose rows have no size.
        local = self._layers.keep[:, rows].double() @ torch.stack([sizes, torch.ones_like(sizes)], dim=1)
        total, *counts = all_reduce_sum(torch.cat([sizes.sum().expand(1, 2), local])).tolist()
        follows = settings.denominator == "kept" and divisors.counts is None
        self._scales = [total[0] / size if follows and size > 0 else 1.0 for size, _ in counts]
        self._is_empty = [count == 0 for _, count in counts]

    def of_pass(self, rows: Tensor) -> AbstractContextManager[None]:
        """Return the context of a pass's forward and backward.

        Args:
            rows: positions among the rows of the step, shape [chosen], int64.
        """
        if self._layers is None:
            return nullcontext()
        shares = {}
        for name, layer in self._layers.layer_of.items():
            keep, scale = self._keep[layer, rows], self._scales[layer]
            # A layer that learns from all rows has its usual gradient, bit for bit.
            if scale != 1 or not bool(keep.all()):
                shares[name] = (keep, scale)
        return self._layers.sharing(shares) if shares else nullcontext()

    def leave_empty(self) -> None:
        """Take the gradient, which is zero, from the layers that learn from no row: the optimizer leaves them alone."""
        if self._layers is not None:
            for name, layer in self._layers.layer_of.items():
                if self._is_empty[layer]:
                    self._layers.parameters[name].grad = None
