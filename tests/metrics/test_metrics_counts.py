"""Counts of each prompt: what an interval over prompts needs, and the same fractions as the metrics."""

from __future__ import annotations

import json
import math

import pytest

from ippo_lightning.metrics import ReasoningMetrics
from ippo_lightning.metrics.counts import PromptCounts
from ippo_lightning.tasks import Grade


def grade(correct, *, faithful=None, answer="3"):
    label = {True: "faithful", False: "shortcut", None: None}[faithful]
    return Grade(correct=correct, label=label, answer=answer)


GRADES = [
    [grade(True, faithful=True), grade(True, faithful=False), grade(False, answer="4"), grade(False, answer=None)],
    [grade(False, answer="5"), grade(False, answer="5"), grade(True, faithful=True), grade(False, answer="6")],
    [grade(False, answer="1")] * 4,
]
REFERENCES = ["3", "3", None]


def test_counts_are_those_of_each_prompt():
    counts = PromptCounts()
    counts.update(GRADES[:2], REFERENCES[:2])
    counts.update(GRADES[2:], REFERENCES[2:])
    assert counts.compute() == {
        "samples": [4, 4, 4],
        "correct": [2, 1, 0],
        "judged": [2, 1, 0],
        "unfaithful": [1, 0, 0],
        "majority_vote": [1.0, 0.0, None],  # 3 twice; 5 twice; no reference
    }
    counts.reset()
    assert counts.compute()["samples"] == []


def test_a_grader_without_answers_has_no_votes():
    counts = PromptCounts()
    counts.update([[grade(True, answer=None), grade(False, answer=None)]], ["3"])
    assert counts.compute()["majority_vote"] == [None]


def test_a_response_of_unknown_reasoning_is_not_judged():
    counts = PromptCounts()
    counts.update([[grade(True), grade(True, faithful=False)]], ["3"])
    assert (counts.compute()["judged"], counts.compute()["unfaithful"]) == ([1], [1])


def test_the_sums_of_the_counts_are_the_metrics():
    metrics = ReasoningMetrics(k=2)
    metrics.update(GRADES, REFERENCES)
    found, counts = metrics.compute(), metrics.prompt_counts.compute()
    assert found["exact_match"] == pytest.approx(sum(counts["correct"]) / sum(counts["samples"]))
    assert found["unfaithful_fraction"] == pytest.approx(sum(counts["unfaithful"]) / sum(counts["judged"]))
    votes = [vote for vote in counts["majority_vote"] if vote is not None]
    assert found["majority_vote"] == pytest.approx(sum(votes) / len(votes))
    passes = [1 - math.comb(4 - c, 2) / math.comb(4, 2) for c in counts["correct"]]
    assert found["pass_at_k"] == pytest.approx(sum(passes) / 3)
    assert json.loads(json.dumps(counts)) == counts
    metrics.reset()
    assert metrics.prompt_counts.compute()["samples"] == []
