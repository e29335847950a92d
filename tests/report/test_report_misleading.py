"""What a selection recognises, against scikit-free hand counts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from ippo_lightning.report.misleading import (
    counts_of,
    detection,
    dropped_auc_by_iteration,
    is_misleading,
    score_auc,
    why_not_judged,
)
from ippo_lightning.report.records import EpisodeRow, Method, Run


def row(
    *, label: str = "faithful", advantage: float | None = 1.0, weight: float = 1.0, score: float | None = None,
    iteration: int = 0,
) -> EpisodeRow:  # fmt: skip
    return EpisodeRow(
        iteration=iteration, prompt="p", response="r", label=label, reward=1.0, advantage=advantage, score=score,
        weight=weight,
    )  # fmt: skip


def method(*by_seed: list[EpisodeRow]) -> Method:
    runs = (Run(Path(), "ippo", seed, episodes=tuple(rows), results={}) for seed, rows in enumerate(by_seed))
    return Method("ippo", "I-PPO", tuple(runs))


@pytest.mark.parametrize(
    ("label", "advantage", "expected"),
    [
        ("faithful", 1.0, False),
        ("faithful", -1.0, True),
        ("shortcut", 1.0, True),
        ("nonsense", -1.0, False),
        ("wrong_answer", -1.0, False),
        ("wrong_answer", 1.0, True),
        ("faithful", 0.0, None),
        ("faithful", None, None),
        ("right", 1.0, None),
        ("", 1.0, None),
    ],
)
def test_an_episode_misleads_if_its_update_goes_the_wrong_way(label, advantage, expected):
    assert is_misleading(row(label=label, advantage=advantage)) is expected


def test_rates_are_those_of_a_classifier_counted_by_hand():
    rows = [
        row(label="shortcut", weight=0.0),
        row(label="shortcut", weight=0.0),
        row(label="shortcut", weight=1.0),
        row(weight=0.0),
        *[row() for _ in range(6)],
        replace(row(label="shortcut", weight=0.0), changes=(("truncated", 0.0),)),
    ]
    assert counts_of(rows) == {"misleading_dropped": 2, "misleading_kept": 1, "other_dropped": 1, "other_kept": 6}
    found = detection(method(rows))
    assert found is not None
    assert (found["misleading"], found["dropped"]) == (pytest.approx(0.3), pytest.approx(0.3))
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found["dropped_auc"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    assert found["score_auc"] is None


def test_episodes_with_advantage_0_are_counted_beside_the_judged_ones():
    judged = [row(label="shortcut", weight=0.0), row(), row()]
    found = detection(method([*judged, row(advantage=0.0, weight=0.0)], judged))
    assert found is not None
    assert (found["advantage_0"], found["dropped"]) == (pytest.approx(0.125), pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "recorded no episodes"),
        ([row(), replace(row(weight=0.0), changes=(("truncated", 0.0),))], "dropped no recorded episode"),
        ([row(), row(advantage=0.0, weight=0.0)], "each dropped episode has advantage 0"),
        ([row(advantage=None, weight=0.0)], "no dropped episode has both a label that tells and an advantage"),
    ],
)
def test_what_is_not_judged_has_a_reason(rows, reason):
    assert detection(method(rows)) is None
    assert why_not_judged(method(rows)).startswith(reason)


def test_the_auc_of_scores_counts_the_pairs_of_an_iteration():
    generator = random.Random(0)
    rows = [
        row(
            label=generator.choice(["faithful", "shortcut"]),
            score=float(generator.randrange(5)),
            iteration=number // 20,
        )
        for number in range(80)
    ]
    wins = pairs = 0.0
    for bad in rows:
        for good in rows:
            if is_misleading(bad) and not is_misleading(good) and bad.iteration == good.iteration:
                pairs += 1
                wins += (bad.score < good.score) + 0.5 * (bad.score == good.score)
    assert score_auc(rows) == pytest.approx(wins / pairs, rel=1e-12)


def test_rates_are_means_over_seeds_and_not_over_episodes():
    one = [row(label="shortcut", weight=0.0), row()]
    other = [row(label="shortcut"), *[row(weight=0.0) for _ in range(9)]]
    found = detection(method(one, other))
    assert found is not None
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert found["intervals"]["precision"] == [0.0, 1.0]


def test_the_curve_has_the_iterations_that_dropped_something():
    rows = [
        *(row(label="shortcut", weight=0.0, iteration=0), row(iteration=0)),
        *(row(label="shortcut", iteration=1), row(iteration=1)),
        *(row(label="shortcut", weight=0.0, iteration=2), row(weight=0.0, iteration=2)),
        *(row(weight=0.0, iteration=3), row(iteration=3)),
    ]
    assert dropped_auc_by_iteration(method(rows).runs[0]) == {0: 1.0, 2: 0.5}


@pytest.mark.parametrize(
    "rows",
    [
        [row(), row(label="shortcut")],
        [row(label="right", weight=0.0)],
        [row(label="wrong_answer", weight=0.0)],
        [row(weight=0.0), row(label="unfaithful", weight=0.0)],
        [],
    ],
    ids=["nothing dropped", "no exact labels", "right and wrong only", "labels of another grader", "no episodes"],
)
def test_without_drops_or_exact_labels_there_is_nothing_to_judge(rows):
    assert detection(method(rows)) is None
