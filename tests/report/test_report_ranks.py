"""A score is compared with the other scores of its iteration, not with those of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.report.ranks import ranked_episodes
from ippo_lightning.report.records import EpisodeRow, Method, Run


def episode(score, *, iteration=0):
    return EpisodeRow(
        iteration=iteration, prompt="p", response="r", label="", reward=1.0, advantage=0.5, score=score, weight=1.0
    )


def method(*runs):
    return Method("m", "M", tuple(Run(Path(), "m", seed, episodes=rows, results={}) for seed, rows in runs))


def test_ranks_and_places_are_those_of_a_hand_computed_iteration():
    rows = tuple(episode(score) for score in (4.0, -2.0, 4.0, 1.0, None))
    found = ranked_episodes(method((1, rows)))
    # From the top: 4 and 4 share rank 1, then 1 is third and -2 fourth. From below: -2, 1, and both 4 share rank 3.
    assert [one.rank for one in found] == [1, 4, 1, 3]
    assert [one.rank_from_below for one in found] == [3, 1, 3, 2]
    # Of places 0, 1, 2, 3 the two equal scores share (2 + 3) / 2; divided by 3.
    assert [one.place for one in found] == pytest.approx([2.5 / 3, 0, 2.5 / 3, 1 / 3])
    # The mean absolute score is (4 + 2 + 4 + 1) / 4 = 2.75.
    assert [one.relative for one in found] == pytest.approx([4 / 2.75, -2 / 2.75, 4 / 2.75, 1 / 2.75])
    assert {one.num_scored for one in found} == {4}


def test_iterations_and_runs_are_ranked_by_themselves():
    small = (episode(0.1), episode(-0.2))
    large = (episode(500.0, iteration=1), episode(900.0, iteration=1))
    found = ranked_episodes(method((1, small + large), (2, (episode(-7.0),))))
    assert [(one.seed, one.episode.iteration, one.rank) for one in found] == [
        (1, 0, 1), (1, 0, 2), (1, 1, 2), (1, 1, 1), (2, 0, 1),
    ]  # fmt: skip
    assert found[-1].place == 0.5  # alone in its iteration


@pytest.mark.parametrize("scores", [(0.0, 0.0), (1e308, 1e308, -1e308), (5e-324, 0.0)])
def test_scores_at_the_limits_of_numbers_have_finite_places(scores):
    found = ranked_episodes(method((1, tuple(episode(score) for score in scores))))
    assert all(0 <= one.place <= 1 and abs(one.relative) < 1e9 for one in found)


def test_without_scores_nothing_is_ranked():
    assert ranked_episodes(method((1, (episode(None),)))) == []
