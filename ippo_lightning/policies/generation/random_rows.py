"""Draw some rows of a batch with the random numbers that they have in the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def random_state(device: torch.device) -> Tensor:
    """Return the state of the random stream that draws on a device take from.

    Args:
        device: of the draws.
    """
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Continue a random stream from what `random_state` returned.

    Args:
        state: of the stream.
        device: of the draws.
    """
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class RandomRows(TorchFunctionMode):
    """Inside the block, `torch.multinomial` draws one token per row as it would for these rows of a larger batch.

    Of one sample per row, `torch.multinomial` is argmax(p / e) with exponential noise e of the shape of p. So a row's
    draw depends on its place in the batch only through the noise, which this class draws for all rows.

    Args:
        rows: places in the batch, shape [chosen], int64.
        num_rows: of the batch.
        state: of the random stream before the first draw; the stream itself does not move.
        device: of the draws.
    """

    def __init__(self, rows: Tensor, *, num_rows: int, state: Tensor, device: torch.device) -> None:
        super().__init__()
        self._rows, self._num_rows = rows, num_rows
        self._generator = torch.Generator(device)
        self._generator.set_state(state)
        self.num_draws = 0

    def state(self) -> Tensor:
        """Return the state after the draws so far, which is that of the whole batch after as many draws."""
        return self._generator.get_state()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the draw; call everything else as it is."""
        if func is not torch.multinomial:
            return func(*args, **(kwargs or {}))
        probabilities: Tensor = args[0]
        noise = probabilities.new_empty((self._num_rows, probabilities.shape[-1]))
        noise.exponential_(1, generator=self._generator)
        self.num_draws += 1
        return (probabilities / noise[self._rows]).argmax(dim=-1, keepdim=True)
