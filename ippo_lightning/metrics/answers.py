"""Metrics of answers: exact match, pass@k and majority vote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.functional import fraction, majority_vote, pass_at_k


class ExactMatch(Metric):
    """Fraction of the responses whose answer is right; NaN without responses.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(torch.tensor([[True, False], [True, True]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    full_state_update = False  # an update needs no earlier state, so torchmetrics need not run it twice
    num_correct: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Integers, which add up exactly over batches and ranks.
        self.add_state("num_correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Add responses.

        Args:
            correct: shape [prompts, samples], bool.
        """
        self.num_correct += int(correct.sum())  # grades are on the CPU, the state may be on a GPU
        self.num_responses += correct.numel()

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1], shape []."""
        return fraction(self.num_correct, self.num_responses)


class PassAtK(Metric):
    """Probability that one of k samples to a prompt is right, mean over prompts; NaN without prompts.

    1 - C(n - c, k) / C(n, k) for c right ones of n, which is unbiased for any n >= k.
    Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.

    Args:
        k: at least 1.

    Raises:
        UserError: k below 1; in `update`, fewer samples than k.

    Example:
        >>> metric = PassAtK(2)
        >>> metric.update(torch.tensor([[True, False, False, False]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    passes: Tensor
    num_prompts: Tensor

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"metrics.k: {k} is out of range; expected an integer >= 1")
        self.k = k
        self.add_state("passes", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_prompts", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Add prompts.

        Args:
            correct: shape [prompts, samples], bool; at least k samples.
        """
        counts = correct.sum(dim=1).tolist()
        num_samples = correct.shape[1]
        # Python adds in double precision; the state has to be single, because some devices have no other
        self.passes += sum(pass_at_k(num_samples=num_samples, num_correct=count, k=self.k) for count in counts)
        self.num_prompts += len(counts)

    def compute(self) -> Tensor:
        """Return the mean probability, in [0, 1], shape []."""
        return fraction(self.passes, self.num_prompts)


class MajorityVote(Metric):
    """Fraction of the prompts whose most frequent answer is right; NaN without prompts.

    A tie counts with the chance that a draw among the most frequent answers hits the right one. A response without an
    answer does not vote; a prompt without votes counts as wrong. NaN if the grader reports no answers, which a right
    response without an answer shows.

    Example:
        >>> metric = MajorityVote()
        >>> metric.update([["14", "14", "3"], ["5", None, None], ["1", "2"]], references=["14", "6", "1"])
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    votes: Tensor
    num_prompts: Tensor
    num_unreported: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("votes", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_prompts", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_unreported", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, answers: Sequence[Sequence[str | None]], references: Sequence[str | None], *, num_unreported: int = 0
    ) -> None:
        """Add prompts.

        Args:
            answers: for each prompt, those of its samples, in canonical form; None for none.
            references: for each prompt, the right answer in the same form; None leaves the prompt out.
            num_unreported: right responses without an answer.
        """
        pairs = [
            (group, reference) for group, reference in zip(answers, references, strict=True) if reference is not None
        ]
        self.votes += sum(majority_vote(answers=group, reference=reference) for group, reference in pairs)
        self.num_prompts += len(pairs)
        self.num_unreported += num_unreported

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1], shape []."""
        # A grader that reports no answers would make every prompt one without votes, and the result a misleading 0.
        if self.num_unreported > 0:
            return torch.full_like(self.votes, torch.nan)
        return fraction(self.votes, self.num_prompts)
