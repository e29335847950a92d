"""How long responses are."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.metrics.functional import fraction


class ResponseLength(Metric):
    """Mean tokens of the responses; NaN without responses.

    Example:
        >>> metric = ResponseLength()
        >>> metric.update(torch.tensor([3, 5]))
        >>> metric.compute()
        tensor(4.)
    """

    full_state_update = False
    num_tokens: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Integers, which add up exactly over batches and ranks.
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, lengths: Tensor) -> None:
        """Add responses.

        Args:
            lengths: tokens of each response, EOS included, int64, any shape.
        """
        self.num_tokens += int(lengths.sum())
        self.num_responses += lengths.numel()

    def compute(self) -> Tensor:
        """Return the mean, in tokens, shape []."""
        return fraction(self.num_tokens, self.num_responses)
