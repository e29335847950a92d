from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.report.evidence import extremes, label_meanings, label_table
from ippo_lightning.report.records import EpisodeRow, Method, Run


def episode(*, score=None, weight=1.0, label="faithful", response="r"):
    return EpisodeRow(
        iteration=0, prompt="p", response=response, label=label, reward=1.0, advantage=0.0, score=score, weight=weight
    )


def method(*episodes):
    return Method("ippo", "I-PPO", (Run(Path(), "ippo", 1, episodes=episodes, results={}),))


def test_extremes_are_ordered_and_of_one_sign():
    shown = method(*(episode(score=score, response=str(score)) for score in (0.5, -3.0, 2.0, None, 0.0, -1.0)))
    assert [row.score for row in extremes(shown, most_positive=True)] == [2.0, 0.5]
    assert [row.score for row in extremes(shown, most_positive=False)] == [-3.0, -1.0]
    assert [row.score for row in extremes(shown, most_positive=True, count=1)] == [2.0]


def test_an_equal_text_is_shown_once_with_its_most_extreme_score():
    shown = method(*(episode(score=score) for score in (1.0, 3.0, 2.0)), episode(score=0.5, response="other"))
    assert [row.score for row in extremes(shown, most_positive=True)] == [3.0, 0.5]


def test_label_fractions_are_counted_within_each_group():
    rows = [episode(score=float(i), weight=1.0, label="faithful") for i in range(1, 16)]
    rows += [episode(score=-float(i), weight=0.0, label="shortcut") for i in range(1, 6)]
    found = label_table(method(*rows))
    assert found.groups == ("all", "kept", "dropped", "top tenth", "bottom tenth")
    assert found.counts == (20, 15, 5, 2, 2)
    assert found.fractions == {"faithful": (0.75, 1, 0, 1, 0), "shortcut": (0.25, 0, 1, 0, 1)}


def test_a_control_without_scores_has_no_tenths():
    found = label_table(method(episode(), episode(weight=0.0)))
    assert found.groups == ("all", "kept", "dropped")


@pytest.mark.parametrize(
    "rows", [(), (episode(),), (episode(weight=None),), (episode(label=""), episode(label="", weight=0.0))]
)
def test_there_is_no_table_where_nothing_was_dropped_or_labelled(rows):
    assert label_table(method(*rows)) is None


def test_a_long_tail_of_labels_is_folded():
    found = label_table(method(*(episode(label=f"label {i}", weight=i % 2) for i in range(50))))
    assert len(found.fractions) == 13
    assert found.fractions["other labels"][0] == pytest.approx(38 / 50, rel=1e-12)
    assert sum(fractions[0] for fractions in found.fractions.values()) == pytest.approx(1, rel=1e-12)


def test_meanings_are_given_for_known_labels_only():
    assert list(label_meanings(["made up", "shortcut", "faithful"])) == ["faithful", "shortcut"]
