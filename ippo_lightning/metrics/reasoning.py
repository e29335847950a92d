"""Exact match, majority vote, pass@k, unfaithful share and label shares, from the verdicts of a judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.functional import majority_vote, pass_at_k
from ippo_lightning.reasoning import Label, Verdict

_LABELS = tuple(Label)


class ReasoningMetrics(Metric):
    """What sampled responses to a set of prompts are worth.

    `exact_match`: share of right responses. `majority_vote`: share of prompts whose most frequent answer is right.
    `pass_at_k`: chance that one of k is right. `unfaithful_share`: share of the right responses whose reasoning is not
    faithful (NaN without right responses). `label/<name>`: share of the responses with that label.
    The states are sums and counts, so ranks and batches add up to the whole.

    Args:
        k: of pass@k.

    Raises:
        UserError: k below 1; in `update`, fewer samples than k.
    """

    full_state_update = False

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"metrics.k: {k} is out of range; expected an integer >= 1")
        self.k = k
        for name in ("num_prompts", "num_responses", "num_correct", "num_faithful", "votes", "passes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("labels", torch.zeros(len(_LABELS), dtype=torch.float64), dist_reduce_fx="sum")

    num_prompts: Tensor
    num_responses: Tensor
    num_correct: Tensor
    num_faithful: Tensor
    votes: Tensor
    passes: Tensor
    labels: Tensor

    def update(self, verdicts: Sequence[Sequence[Verdict]], references: Sequence[str]) -> None:
        """Add prompts.

        Args:
            verdicts: for each prompt, those of its samples.
            references: for each prompt, the right answer in canonical form.
        """
        for group, reference in zip(verdicts, references, strict=True):
            correct = sum(verdict.correct for verdict in group)
            self.num_prompts += 1
            self.num_responses += len(group)
            self.num_correct += correct
            self.num_faithful += sum(verdict.correct and verdict.faithful for verdict in group)
            self.votes += majority_vote(answers=[verdict.answer for verdict in group], reference=reference)
            self.passes += pass_at_k(num_samples=len(group), num_correct=correct, k=self.k)
            for verdict in group:
                self.labels[_LABELS.index(verdict.label)] += 1

    def compute(self) -> Mapping[str, float]:
        """Return the metrics by name; NaN where there is nothing to divide by."""
        return {
            "exact_match": _share(self.num_correct, self.num_responses),
            "majority_vote": _share(self.votes, self.num_prompts),
            "pass_at_k": _share(self.passes, self.num_prompts),
            "unfaithful_share": _share(self.num_correct - self.num_faithful, self.num_correct),
            **{
                f"label/{label.value}": _share(count, self.num_responses)
                for label, count in zip(_LABELS, self.labels, strict=True)
            },
        }


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) > 0 else math.nan
