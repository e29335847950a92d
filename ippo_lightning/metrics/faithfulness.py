"""Metrics of reasoning: how much of what is right is right for the wrong reasons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.functional import fraction
from ippo_lightning.tasks import Label

LABELS = tuple(Label)


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
            correct: bool, any shape: whether the answer is right.
            faithful: bool, same shape: whether the reasoning is; not looked at where the answer is wrong.
        """
        self.num_unfaithful += int((correct & ~faithful).sum())
        self.num_correct += int(correct.sum())

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1]."""
        return fraction(self.num_unfaithful, self.num_correct)


class LabelFractions(Metric):
    """Fraction of the responses with each label; NaN without responses.

    Raises:
        UserError: in `update`, an unknown label.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(len(LABELS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Sequence[Label | str]) -> None:
        """Add responses.

        Args:
            labels: one a response.
        """
        known = [label.value for label in LABELS]
        for label in labels:
            if label not in known:
                raise UserError(f"metrics.labels: {label!r} is unknown; expected one of {', '.join(known)}")
            self.counts[known.index(label)] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the shares by label, in [0, 1], together 1."""
        total = self.counts.sum()
        return {label.value: fraction(count, total) for label, count in zip(LABELS, self.counts, strict=True)}
