"""How long responses are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
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


class TruncatedFraction(Metric):
    """Fraction of the responses that the length limit cut off; NaN without responses.

    Example:
        >>> metric = TruncatedFraction()
        >>> metric.update(torch.tensor([True, False]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    num_truncated: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_truncated", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, truncated: Tensor) -> None:
        """Add responses.

        Args:
            truncated: whether the limit came before the end of each response, bool, any shape.
        """
        self.num_truncated += int(truncated.sum())
        self.num_responses += truncated.numel()

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1], shape []."""
        return fraction(self.num_truncated, self.num_responses)


class LengthMetrics(nn.Module):
    """The part of an evaluation's metrics that is the same with a grader and with a reward: lengths of responses."""

    def __init__(self) -> None:
        super().__init__()
        self.response_tokens_mean = ResponseLength()
        self.truncated_fraction = TruncatedFraction()

    def update_lengths(self, lengths: Tensor | None, truncated: Tensor | None) -> None:
        """Add responses.

        Args:
            lengths: see `ResponseLength`; None if unknown.
            truncated: see `TruncatedFraction`; None if unknown.
        """
        none = torch.empty(0, dtype=torch.int64)
        self.response_tokens_mean.update(none if lengths is None else lengths)
        self.truncated_fraction.update(none if truncated is None else truncated)

    def compute_lengths(self) -> dict[str, float]:
        """Return the metrics of all ranks by name; no entries without responses of known length."""
        found = {
            "response_tokens_mean": float(self.response_tokens_mean.compute()),
            "truncated_fraction": float(self.truncated_fraction.compute()),
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def reset_lengths(self) -> None:
        """Set all sums and counts to 0."""
        self.response_tokens_mean.reset()
        self.truncated_fraction.reset()
