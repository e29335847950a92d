"""What was kept and dropped, by label and by the sign of the advantage."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ippo_lightning.report.kept import ALL, NEGATIVE, OTHER_SIGN, POSITIVE, kept_table, kept_words
from ippo_lightning.report.records import EpisodeRow, Method, Run

PROMPTS = (f"prompt {number}" for number in itertools.count())


def episode(label="faithful", *, advantage=1.0, weight=1.0, score=None, iteration=0):
    return EpisodeRow(
        iteration=iteration,
        prompt=next(PROMPTS),
        response="r",
        label=label,
        reward=1.0,
        advantage=advantage,
        score=score,
        weight=weight,
    )


def method(*episodes):
    return Method("ippo", "I-PPO", (Run(Path(), "ippo", 1, episodes=episodes, results={}),))


# Faithful: of 40 with a positive advantage 30 are kept, of 10 with a negative one none. Wrong: of 50 with a negative
# advantage 25. So 75 % of the faithful with a positive advantage, and 60 % of all faithful; 55 % of everything.
ROWS = (
    *(episode(weight=1.0, iteration=i % 10) for i in range(30)),
    *(episode(weight=0.0, iteration=i) for i in range(10)),
    *(episode(weight=0.0, advantage=-1.0, iteration=i) for i in range(10)),
    *(episode("wrong_answer", weight=float(i % 2), advantage=-2.0, iteration=i // 5) for i in range(50)),
)


def test_kept_fractions_are_those_counted_by_hand():
    table = kept_table(method(*ROWS))
    assert table is not None
    assert table.columns == (POSITIVE, NEGATIVE, ALL)
    assert [(row.kind, row.label) for row in table.rows] == [
        ("label", "faithful"), ("label", "wrong_answer"), ("all", ""),
    ]  # fmt: skip
    kept = [{column: (cell.count, cell.kept) for column, cell in row.cells.items()} for row in table.rows]
    assert kept == [
        {POSITIVE: (40, 0.75), NEGATIVE: (10, 0.0), ALL: (50, 0.6)},
        {NEGATIVE: (50, 0.5), ALL: (50, 0.5)},
        {POSITIVE: (40, 0.75), NEGATIVE: (60, 25 / 60), ALL: (100, 0.55)},
    ]


def test_the_sentences_name_both_signs_and_a_difference_that_is_larger_than_chance():
    table = kept_table(method(*ROWS, episode("shortcut")))  # one shortcut is too few to be named
    assert table is not None
    first, second, third = kept_words(table)
    assert first == "The update used 55.4 % of the 101 recorded episodes."
    assert second == (
        "It used 75.6 % of those with a positive advantage, which it makes more likely, and 41.7 % of those with a "
        "negative advantage, which it makes less likely."
    )
    assert "the update used 75.0 % of “faithful, advantage > 0” (n = 40) and 0.0 % of “faithful," in third


def cells(table, kind, label=""):
    (row,) = [row for row in table.rows if (row.kind, row.label) == (kind, label)]
    return row.cells


@pytest.mark.parametrize("own", ["all labels", "no label", "other labels", "All_Labels"])
def test_labels_that_are_called_like_rows_of_the_table_stay_rows_of_their_own(own):
    rows = [episode(own, weight=0.0), episode(own), episode(""), episode("", weight=0.0), episode("", weight=0.0)]
    table = kept_table(method(*rows, *(episode(f"label {i}") for i in range(20))))
    assert table is not None
    assert (cells(table, "label", own)[ALL].count, cells(table, "label", own)[ALL].kept) == (2, 0.5)
    assert cells(table, "none")[ALL].count == 3
    assert cells(table, "all")[ALL].count == 25
    assert cells(table, "rest")[ALL].count == 10
    titles = [row.title for row in table.rows]
    assert len(set(titles)) == len(titles)  # a reader can tell them apart, too


def test_an_advantage_of_zero_or_none_has_a_column_of_its_own():
    table = kept_table(method(episode(advantage=0.0, weight=0.0), episode(advantage=None), episode(weight=None)))
    assert table is not None
    assert table.columns == (OTHER_SIGN, ALL)
    assert table.total[OTHER_SIGN].count == 2  # an episode without a weight counts nowhere


def test_places_are_medians_of_the_ranks_within_the_iteration():
    rows = (*(episode(score=float(i), weight=1.0) for i in range(1, 4)), episode("shortcut", score=-9.0, weight=0.0))
    table = kept_table(method(*rows))
    assert table is not None
    # The four scores have the places 0, 1/3, 2/3 and 1; the faithful ones the upper three.
    assert cells(table, "label", "faithful")[ALL].median_place == pytest.approx(2 / 3)
    assert cells(table, "label", "shortcut")[ALL].median_place == 0.0


def test_a_control_without_scores_has_no_places():
    table = kept_table(method(episode(), episode(weight=0.0)))
    assert table is not None
    assert cells(table, "label", "faithful")[ALL].median_place is None


def test_without_labels_one_row_is_enough():
    table = kept_table(method(episode(""), episode("", weight=0.0)))
    assert table is not None
    assert [row.kind for row in table.rows] == ["all"]
    assert not any("labels" in sentence for sentence in kept_words(table))


def test_one_iteration_shows_no_difference():
    table = kept_table(method(*(episode(one, weight=float(one == "a")) for one in "ab" for _ in range(50))))
    assert table is not None
    assert kept_words(table)[-1].startswith("No difference between labels or signs is shown: that takes two groups")


@pytest.mark.parametrize("rows", [(), (episode(),), (episode(weight=None),)])
def test_there_is_no_table_where_nothing_was_dropped(rows):
    assert kept_table(method(*rows)) is None


def test_a_long_tail_of_labels_shares_a_row():
    table = kept_table(method(*(episode(f"label {i}", weight=float(i % 2)) for i in range(50))))
    assert table is not None
    assert len(table.rows) == 14  # twelve labels, the rest, all
    assert cells(table, "rest")[ALL].count == 38
