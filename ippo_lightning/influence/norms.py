"""The length of each episode's gradient, for cosines: parameter by parameter, freed as soon as nobody adds to it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ippo_lightning.influence.contractions import Rows
from ippo_lightning.influence.coverage import HookedModule, HookedParameter


class GradientNorms:
    """Squared lengths of the episodes' gradients over the parameters that the direction is not zero on.

    The gradient of one parameter is formed for all episodes of a batch at once. A parameter that is used several times
    (tied, or in a module called twice) is held until the last use has added its part, as its parts can cancel.

    Args:
        zeros: where sums begin, shape [rows].
        num_uses: by parameter name, how often the forward used it.
    """

    def __init__(self, zeros: Tensor, *, num_uses: Counter[str]) -> None:
        self._squares = zeros.clone()
        self._num_uses = num_uses
        self._held: dict[str, Tensor] = {}

    def add(self, entry: HookedModule, inputs: Tensor, gradient: Tensor) -> None:
        """Take in what passed through one call of a module."""
        for part in entry.parts:
            formed = _episode_gradients(entry, part, inputs, gradient)
            if self._num_uses[part.name] == 1:
                self._squares += _squares(formed).to(device=self._squares.device)
            else:
                self._held[part.name] = self._held.get(part.name, torch.zeros_like(formed)) + formed

    def norms(self) -> Tensor:
        """Return the lengths, shape [rows]."""
        held = sum((_squares(value).to(device=self._squares.device) for value in self._held.values()), self._squares)
        return held.sqrt()


def _squares(gradients: Tensor) -> Tensor:
    return gradients.flatten(start_dim=1).square().sum(dim=1)


def _episode_gradients(entry: HookedModule, part: HookedParameter, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Form the gradients [rows, *parameter]: the derivative of the contraction, which is linear, by its block."""
    block = next(block for block in part.blocks if block is not None)
    zeros = torch.zeros(block.shape, dtype=block.dtype, device=block.device)

    def contracted(along: Tensor, row_inputs: Tensor, row_gradient: Tensor) -> Tensor:
        rows = Rows(careful=False)
        return part.term(entry.module, row_inputs.unsqueeze(0), row_gradient.unsqueeze(0), along, rows=rows).squeeze(0)

    form = torch.func.vmap(torch.func.grad(contracted), in_dims=(None, 0, 0))
    formed: Tensor = form(zeros, inputs, gradient)
    return formed
