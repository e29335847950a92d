"""What was kept and dropped, by label and by the sign of the advantage."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.report.kept import ALL, ALL_LABELS, NEGATIVE, OTHER_SIGN, POSITIVE, REST, kept_table, kept_words
from ippo_lightning.report.records import EpisodeRow, Method, Run


def episode(label="faithful", *, advantage=1.0, weight=1.0, score=None):
    return EpisodeRow(
        iteration=0, prompt="p", response="r", label=label, reward=1.0, advantage=advantage, score=score, weight=weight
    )


def method(*episodes):
    return Method("ippo", "I-PPO", (Run(Path(), "ippo", 1, episodes=episodes, results={}),))


# Faithful: of 40 with a positive advantage 30 are kept, of 10 with a negative one none. Wrong: of 50 with a negative
# advantage 25. So 75 % of the faithful with a positive advantage, and 60 % of all faithful; 55 % of everything.
ROWS = (
    *(episode(weight=1.0) for _ in range(30)),
    *(episode(weight=0.0) for _ in range(10)),
    *(episode(weight=0.0, advantage=-1.0) for _ in range(10)),
    *(episode("wrong_answer", weight=float(i % 2), advantage=-2.0) for i in range(50)),
)


def test_kept_fractions_are_those_counted_by_hand():
    table = kept_table(method(*ROWS))
    assert table is not None
    assert table.columns == (POSITIVE, NEGATIVE, ALL)
    assert list(table.rows) == ["faithful", "wrong_answer", ALL_LABELS]
    kept = {
        row: {column: (cell.count, cell.kept) for column, cell in cells.items()} for row, cells in table.rows.items()
    }
    assert kept == {
        "faithful": {POSITIVE: (40, 0.75), NEGATIVE: (10, 0.0), ALL: (50, 0.6)},
        "wrong_answer": {NEGATIVE: (50, 0.5), ALL: (50, 0.5)},
        ALL_LABELS: {POSITIVE: (40, 0.75), NEGATIVE: (60, 25 / 60), ALL: (100, 0.55)},
    }


def test_the_sentences_name_both_signs_and_the_extreme_labels():
    table = kept_table(method(*ROWS, episode("shortcut")))  # one shortcut is too few to be named
    assert table is not None
    assert kept_words(table) == [
        "The update used 55.4 % of the 101 recorded episodes.",
        "It used 75.6 % of those with a positive advantage, which it makes more likely, and 41.7 % of those with a "
        "negative advantage, which it makes less likely.",
        "Kept most: faithful with advantage > 0 (75.0 %, n = 40). "
        "Kept least: faithful with advantage < 0 (0.0 %, n = 10).",
    ]


def test_an_advantage_of_zero_or_none_has_a_column_of_its_own():
    table = kept_table(method(episode(advantage=0.0, weight=0.0), episode(advantage=None), episode(weight=None)))
    assert table is not None
    assert table.columns == (OTHER_SIGN, ALL)
    assert table.rows[ALL_LABELS][OTHER_SIGN].count == 2  # an episode without a weight counts nowhere


def test_places_are_medians_of_the_ranks_within_the_iteration():
    rows = (*(episode(score=float(i), weight=1.0) for i in range(1, 4)), episode("shortcut", score=-9.0, weight=0.0))
    table = kept_table(method(*rows))
    assert table is not None
    # The four scores have the places 0, 1/3, 2/3 and 1; the faithful ones the upper three.
    assert table.rows["faithful"][ALL].median_place == pytest.approx(2 / 3)
    assert table.rows["shortcut"][ALL].median_place == 0.0


def test_a_control_without_scores_has_no_places():
    table = kept_table(method(episode(), episode(weight=0.0)))
    assert table is not None
    assert table.rows["faithful"][ALL].median_place is None


def test_without_labels_one_row_is_enough():
    table = kept_table(method(episode(""), episode("", weight=0.0)))
    assert table is not None
    assert list(table.rows) == [ALL_LABELS]


@pytest.mark.parametrize("rows", [(), (episode(),), (episode(weight=None),)])
def test_there_is_no_table_where_nothing_was_dropped(rows):
    assert kept_table(method(*rows)) is None


def test_a_long_tail_of_labels_shares_a_row():
    table = kept_table(method(*(episode(f"label {i}", weight=float(i % 2)) for i in range(50))))
    assert table is not None
    assert len(table.rows) == 14  # twelve labels, the rest, all
    assert table.rows[REST][ALL].count == 38
