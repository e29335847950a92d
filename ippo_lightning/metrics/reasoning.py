"""All metrics of sampled reasoning at once, from the grades of a grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.answers import ExactMatch, MajorityVote, PassAtK
from ippo_lightning.metrics.counts import PromptCounts
from ippo_lightning.metrics.faithfulness import UnfaithfulFraction
from ippo_lightning.metrics.labels import LabelFractions
from ippo_lightning.metrics.lengths import LengthMetrics
from ippo_lightning.metrics.rewards import NamedMeans
from ippo_lightning.records import Example


class GradedResponse(Protocol):
    """What the metrics read of a grade; `ippo_lightning.tasks.Grade` has it."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""

    @property
    def label(self) -> str | None:
        """Any label; None without one."""

    @property
    def answer(self) -> str | None:
        """The answer in canonical form; None without one."""

    @property
    def faithful(self) -> bool | None:
        """Whether answer and reasoning are both right; None if unknown."""


class ReasoningMetrics(LengthMetrics):
    """The quality of sampled responses to a set of prompts.

    - `exact_match`: fraction of right responses.
    - `majority_vote`: fraction of prompts whose most frequent answer is right; NaN if the grades have no answers or
      the prompts no reference.
    - `pass_at_k`: chance that one of k samples is right.
    - `unfaithful_fraction`: fraction of the right responses whose reasoning is not faithful; NaN without right
      responses, or if the labels do not describe reasoning.
    - `response_tokens_mean`, `truncated_fraction`: mean tokens of the responses, and the fraction that the length limit
      cut off; not there if no lengths are given.
    - `reward`, `reward/<name>`: mean of the reward, and of its parts; not there if no rewards are given.
    - `label/<name>`: fraction of the responses with that label, for the labels that the grader gives.

    The states are sums and counts, so batches and ranks add up to the result of all of them.

    Args:
        k: of pass@k.

    Raises:
        UserError: k is below 1; in `update`, fewer samples than k, or not the same number for each prompt.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        # No MetricCollection: it passes the same arguments to all, and `unfaithful_fraction` needs another `correct`.
        self.exact_match = ExactMatch()
        self.majority_vote = MajorityVote()
        self.pass_at_k = PassAtK(k)
        self.unfaithful_fraction = UnfaithfulFraction()
        self.label_fractions = LabelFractions()
        self.prompt_counts = PromptCounts()
        self.rewards = NamedMeans()

    def update(
        self,
        grades: Sequence[Sequence[GradedResponse]],
        references: Sequence[str | None],
        *,
        lengths: Tensor | None = None,
        truncated: Tensor | None = None,
        rewards: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add prompts.

        Args:
            grades: for each prompt, those of its samples, the same number for each.
            references: for each prompt, the right answer in canonical form; None if there is none.
            lengths: tokens of each response, shape [prompts, samples], int64; None if unknown.
            truncated: whether the length limit cut each response off, shape [prompts, samples], bool; None if unknown.
            rewards: see `named_rewards`; None if the reward is not measured.
        """
        sizes = {len(group) for group in grades}
        # The grades become a matrix [prompts, samples], and a mean over prompts needs the same n in each.
        if len(sizes) > 1:
            raise UserError(f"metrics.grades: {sorted(sizes)} samples per prompt; expected the same number for each")
        # Without prompts there is no matrix: the tensor of an empty list has one axis.
        if not grades:
            return
        correct = torch.tensor([[bool(grade.correct) for grade in group] for group in grades])
        faithful = torch.tensor([[bool(grade.faithful) for grade in group] for group in grades])
        is_known = torch.tensor([[grade.faithful is not None for grade in group] for group in grades])
        answers = [[grade.answer for grade in group] for group in grades]
        self.prompt_counts.update(grades, references)
        self.exact_match.update(correct)
        self.majority_vote.update(answers, references, num_unreported=_num_unreported(grades))
        self.pass_at_k.update(correct)
        # a response of unknown reasoning counts neither as faithful nor as unfaithful
        self.unfaithful_fraction.update(correct & is_known, faithful)
        self.update_lengths(lengths, truncated)
        self.rewards.update(rewards or {})
        self.label_fractions.update([grade.label for group in grades for grade in group])

    def compute(self) -> dict[str, float]:
        """Return the metrics of all ranks by name; NaN for 0 / 0."""
        return {
            "exact_match": float(self.exact_match.compute()),
            "majority_vote": float(self.majority_vote.compute()),
            "pass_at_k": float(self.pass_at_k.compute()),
            "unfaithful_fraction": float(self.unfaithful_fraction.compute()),
            **{name: float(value) for name, value in self.rewards.compute().items()},
            **self.compute_lengths(),
            **{f"label/{label}": float(value) for label, value in self.label_fractions.compute().items()},
        }

    def reset(self) -> None:
        """Set all sums and counts to 0."""
        self.prompt_counts.reset()
        for metric in (
            self.exact_match,
            self.majority_vote,
            self.pass_at_k,
            self.unfaithful_fraction,
            self.label_fractions,
            self.rewards,
        ):
            metric.reset()
        self.reset_lengths()


def reference_answers(examples: Sequence[Example]) -> list[str | None]:
    """Return the right answer of each example as text, None if it has no `answer`.

    Args:
        examples: of the prompts.
    """
    return [None if example.get("answer") is None else str(example["answer"]) for example in examples]


def _num_unreported(grades: Sequence[Sequence[GradedResponse]]) -> int:
    """Return how many right responses have no answer: a grader that reports answers has one for each."""
    return sum(bool(grade.correct) and grade.answer is None for group in grades for grade in group)
