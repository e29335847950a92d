"""How much of what is right has unfaithful reasoning."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.metrics.functional import fraction


class UnfaithfulFraction(Metric):
    """Fraction of the right answers whose reasoning is not faithful; NaN without right answers.

    Example:
        >>> metric = UnfaithfulFraction()
        >>> metric.update(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    num_unfaithful: Tensor
    num_correct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_unfaithful", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_correct", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor, faithful: Tensor) -> None:
        """Add responses.

        Args:
            correct: bool, any shape: whether the answer is right. Pass False to leave a response out.
            faithful: bool, same shape: whether the reasoning is faithful; ignored where the answer is wrong.
        """
        self.num_unfaithful += int((correct & ~faithful).sum())
        self.num_correct += int(correct.sum())

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1], shape []."""
        return fraction(self.num_unfaithful, self.num_correct)
