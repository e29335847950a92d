"""All metrics of sampled reasoning at once, from the grades of a grader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.answers import ExactMatch, MajorityVote, PassAtK
from ippo_lightning.metrics.faithfulness import LabelFractions, UnfaithfulFraction


class GradedResponse(Protocol):
    """What the metrics read of a grade; `ippo_lightning.tasks.Grade` has it."""

    @property
    def label(self) -> str:
        """Kind of the reasoning."""

    @property
    def answer(self) -> str | None:
        """In canonical form; None for none."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""

    @property
    def faithful(self) -> bool:
        """Whether answer and reasoning are both right."""


class ReasoningMetrics(nn.Module):
    """What sampled responses to a set of prompts are worth.

    `exact_match`: fraction of right responses. `majority_vote`: fraction of prompts whose most frequent answer is
        right.
    `pass_at_k`: chance that one of k is right. `unfaithful_fraction`: fraction of the right responses whose reasoning
        is not
    faithful (NaN without right responses). `label/<name>`: fraction of the responses with that label.
    The states are sums and counts, so batches and ranks add up to the whole.

    Args:
        k: of pass@k.

    Raises:
        UserError: k below 1; in `update`, fewer samples than k, or not the same number for each prompt.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.exact_match = ExactMatch()
        self.majority_vote = MajorityVote()
        self.pass_at_k = PassAtK(k)
        self.unfaithful_fraction = UnfaithfulFraction()
        self.label_fractions = LabelFractions()

    def update(self, grades: Sequence[Sequence[GradedResponse]], references: Sequence[str]) -> None:
        """Add prompts.

        Args:
            grades: for each prompt, those of its samples, as many for each.
            references: for each prompt, the right answer in canonical form.
        """
        sizes = {len(group) for group in grades}
        if len(sizes) > 1:
            raise UserError(f"metrics.grades: {sorted(sizes)} samples a prompt; expected the same number for each")
        if not grades:
            return
        correct = torch.tensor([[bool(grade.correct) for grade in group] for group in grades])
        faithful = torch.tensor([[bool(grade.faithful) for grade in group] for group in grades])
        self.exact_match.update(correct)
        self.majority_vote.update([[grade.answer for grade in group] for group in grades], references)
        self.pass_at_k.update(correct)
        self.unfaithful_fraction.update(correct, faithful)
        self.label_fractions.update([grade.label for group in grades for grade in group])

    def compute(self) -> dict[str, float]:
        """Return the metrics of all ranks by name; NaN where there is nothing to divide by."""
        return {
            "exact_match": float(self.exact_match.compute()),
            "majority_vote": float(self.majority_vote.compute()),
            "pass_at_k": float(self.pass_at_k.compute()),
            "unfaithful_fraction": float(self.unfaithful_fraction.compute()),
            **{f"label/{label}": float(value) for label, value in self.label_fractions.compute().items()},
        }

    def reset(self) -> None:
        """Start over."""
        for metric in (
            self.exact_match,
            self.majority_vote,
            self.pass_at_k,
            self.unfaithful_fraction,
            self.label_fractions,
        ):
            metric.reset()
