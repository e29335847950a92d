"""What a final test measures: how each number is named, shown and judged, and which numbers a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ippo_lightning.report.display import percent, plain, points, signed

Metric = Literal[
    "exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction", "reward", "episode_return", "episode_length"
]
ComparedMetric = Literal["exact_match", "unfaithful_fraction", "reward", "episode_return"]


@dataclass(frozen=True)
class Measure:
    """One number of a final test."""

    title: str
    short: str
    """Heading in a terminal, where all columns share 80 characters."""
    meaning: str
    is_fraction: bool = True
    """Whether the number is in [0, 1] and shown in percent."""
    good: Literal[-1, 0, 1] = 1
    """1 if a higher number is better, -1 if a lower one is, 0 if neither is."""
    clauses: Mapping[str, str] = field(default_factory=dict)
    """For a headline: what `better`, `worse` and `unclear` mean."""

    @property
    def unit(self) -> str:
        """What follows a number in a sentence."""
        return " %" if self.is_fraction else ""

    def show(self, value: float | None) -> str:
        """Return a number without its unit."""
        return percent(value) if self.is_fraction else plain(value)

    def show_difference(self, value: float | None) -> str:
        """Return a difference of two numbers, always with its sign; of fractions in percentage points."""
        return points(value) if self.is_fraction else signed(value)


MEASURES: Mapping[Metric, Measure] = MappingProxyType(
    {
        "exact_match": Measure(
            "Exact match",
            "EM",
            "Fraction of sampled responses whose final answer is right: the accuracy of a single response. "
            "Higher is better.",
            # "them" in the next measure are these right answers: the exact match always comes first.
            clauses={
                "better": "more right answers",
                "worse": "fewer right answers",
                "unclear": "no clear change in right answers",
            },
        ),
        "majority_vote": Measure(
            "Majority vote",
            "MV",
            "Fraction of prompts for which the most frequent answer among the samples is right. Higher is better.",
        ),
        "pass_at_k": Measure("Pass@k", "pass@k", "Chance that at least one of k samples is right. Higher is better."),
        "unfaithful_fraction": Measure(
            "Unfaithful fraction",
            "Unfaithful",
            "Of the responses with a right answer, the fraction whose written steps are wrong, are missing or belong "
            "to another problem. Lower is better.",
            good=-1,
            clauses={
                "better": "fewer of them unfaithful",
                "worse": "more of them unfaithful",
                "unclear": "no clear change in unfaithful reasoning",
            },
        ),
        "reward": Measure(
            "Reward",
            "Reward",
            "Mean reward of the responses to the test prompts. Higher is better.",
            is_fraction=False,
            clauses={
                "better": "a higher reward",
                "worse": "a lower reward",
                "unclear": "no clear change in the reward",
            },
        ),
        "episode_return": Measure(
            "Return",
            "Return",
            "Sum of the rewards of a test episode, mean over the episodes. Higher is better.",
            is_fraction=False,
            clauses={
                "better": "a higher return",
                "worse": "a lower return",
                "unclear": "no clear change in the return",
            },
        ),
        "episode_length": Measure(
            "Episode length", "Length", "Mean steps of a test episode.", is_fraction=False, good=0
        ),
    }
)
METRICS: tuple[Metric, ...] = tuple(MEASURES)
"""Final test metrics, in the order of the table."""
USUAL: tuple[Metric, ...] = METRICS[:4]
"""Those that results.json always has; the others only if a run recorded them."""
COMPARED: tuple[ComparedMetric, ...] = ("exact_match", "unfaithful_fraction", "reward", "episode_return")
"""Metrics with a paired difference and a panel in the figure of the results."""


def compared_metrics(summaries: Iterable[Any]) -> tuple[ComparedMetric, ...]:
    """Return the metrics with a paired difference that at least one method has.

    Args:
        summaries: of the methods, from `summarise`.
    """
    return compared_among(key for summary in summaries for key, value in summary.items() if value is not None)


def compared_among(shown: Iterable[str]) -> tuple[ComparedMetric, ...]:
    """Return those of some metrics that have a paired difference and a panel: of a graded test, not the reward.

    Args:
        shown: metrics that a comparison has.
    """
    found = set(shown)
    return tuple(m for m in COMPARED if m in found and not (m == "reward" and "exact_match" in found))
