"""What an evaluation found for each prompt, as counts: intervals over prompts need no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ippo_lightning.distributed.collectives import gather_rows
from ippo_lightning.metrics.functional import majority_vote

if TYPE_CHECKING:
    from ippo_lightning.metrics.reasoning import GradedResponse


class PromptCounts:
    """Counts of each prompt, of this rank until `compute`."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []

    def update(self, grades: Sequence[Sequence[GradedResponse]], references: Sequence[str | None]) -> None:
        """Add prompts.

        Args:
            grades: for each prompt, those of its samples.
            references: for each prompt, the right answer in canonical form; None if there is none.
        """
        for group, reference in zip(grades, references, strict=True):
            right = [grade for grade in group if grade.correct]
            judged = [grade.faithful for grade in right if grade.faithful is not None]
            vote = math.nan
            # Right responses without an answer: the grader reports none, so there is no vote.
            if reference is not None and all(grade.answer is not None for grade in right):
                vote = majority_vote(answers=[grade.answer for grade in group], reference=reference)
            self._rows.append([len(group), len(right), len(judged), judged.count(False), vote])

    def compute(self) -> dict[str, list[float | int | None]]:
        """Return the counts of all ranks as columns with one entry per prompt.

        Returns:
            `samples`; `correct`, the right responses; `judged`, those of them whose reasoning is judged; `unfaithful`,
            those of them whose reasoning is not faithful; `majority_vote`, the chance that the most frequent answer is
            right, None if unknown.
        """
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 5)
        samples, correct, judged, unfaithful, votes = gather_rows(rows)[0].T.tolist()
        counts = {"samples": samples, "correct": correct, "judged": judged, "unfaithful": unfaithful}
        return {
            **{name: [int(value) for value in column] for name, column in counts.items()},
            "majority_vote": [None if math.isnan(vote) else vote for vote in votes],
        }

    def reset(self) -> None:
        """Forget all prompts."""
        self._rows = []
