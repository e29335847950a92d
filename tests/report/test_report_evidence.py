from __future__ import annotations

import random
import statistics
from pathlib import Path

from ippo_lightning.report.evidence import NUM_EXTREMES, extremes, label_meanings
from ippo_lightning.report.records import EpisodeRow, Method, Run


def episode(*, score=None, weight=1.0, label="faithful", response="r", iteration=0):
    return EpisodeRow(
        iteration=iteration,
        prompt="p",
        response=response,
        label=label,
        reward=1.0,
        advantage=0.0,
        score=score,
        weight=weight,
    )


def method(*episodes):
    return Method("ippo", "I-PPO", (Run(Path(), "ippo", 1, episodes=episodes, results={}),))


def test_extremes_are_ordered_and_of_one_sign():
    shown = method(*(episode(score=score, response=str(score)) for score in (0.5, -3.0, 2.0, None, 0.0, -1.0)))
    assert [row.episode.score for row in extremes(shown, most_positive=True)] == [2.0, 0.5]
    assert [row.episode.score for row in extremes(shown, most_positive=False)] == [-3.0, -1.0]
    assert [row.episode.score for row in extremes(shown, most_positive=True, count=1)] == [2.0]


def test_the_first_of_each_iteration_come_before_the_second_of_any():
    small = [episode(score=score, response=f"a{score}") for score in (0.2, 0.19, -0.01)]
    large = [episode(score=score, response=f"b{score}", iteration=1) for score in (5.0, 4.0, -9.0)]
    # In units of the mean size of their iteration, the scores are 1.5, 1.4 and -0.1, and 0.8, 0.7 and -1.5. Of equal
    # ranks, the larger of these comes first.
    found = extremes(method(*small, *large), most_positive=True)
    assert [(row.episode.score, row.rank) for row in found] == [(0.2, 1), (5.0, 1), (0.19, 2), (4.0, 2)]
    assert [row.episode.score for row in extremes(method(*small, *large), most_positive=False)] == [-9.0, -0.01]


def test_the_order_is_that_of_the_guide():
    """By rank; of equal ranks, by the size relative to the mean absolute score of the iteration."""
    generator = random.Random(0)
    rows = [
        episode(score=generator.gauss(0, 10.0**iteration), response=f"{iteration} {i}", iteration=iteration)
        for iteration in range(4)
        for i in range(9)
    ]
    expected = []
    for iteration in range(4):
        members = sorted((row.score for row in rows if row.iteration == iteration), reverse=True)
        scale = statistics.fmean(map(abs, members))
        expected += [(rank, -score / scale, score) for rank, score in enumerate(members, start=1) if score > 0]
    found = extremes(method(*rows), most_positive=True)
    assert [row.episode.score for row in found] == [score for _, _, score in sorted(expected)[:NUM_EXTREMES]]


def test_an_equal_text_is_shown_once_with_its_most_extreme_score():
    shown = method(*(episode(score=score) for score in (1.0, 3.0, 2.0)), episode(score=0.5, response="other"))
    assert [row.episode.score for row in extremes(shown, most_positive=True)] == [3.0, 0.5]


def test_meanings_are_given_for_known_labels_only():
    assert list(label_meanings(["made up", "shortcut", "faithful"])) == ["faithful", "shortcut"]
