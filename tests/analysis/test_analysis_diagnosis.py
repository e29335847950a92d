"""Both ends of the scores beside random records: counts by hand, intervals against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ippo_lightning.analysis.diagnosis import Records, control_of, diagnose, fractions, random_rows, summary_of

SAMPLING = 0.02  # of a quantile over 1,000 draws
CONTROL = 0.005  # of a mean over 1,000 draws
RESAMPLING = 0.1  # of a width from 1,000 resamples, relative
FORMULA = 0.25  # of a width by Fisher's formula, which is for normal numbers, relative


def records_of(scores: object, estimates: object, monte_carlo: object, clusters: object = None) -> Records:
    columns = [np.asarray(column, dtype=float) for column in (scores, estimates, monte_carlo)]
    numbers = np.arange(len(columns[0])) if clusters is None else np.asarray(clusters)
    return Records(scores=columns[0], estimates=columns[1], monte_carlo=columns[2], clusters=numbers)


def noisy(rows: int = 400) -> Records:
    """Records whose estimates have the wrong sign where the score is low."""
    generator = np.random.default_rng(3)
    true = generator.normal(size=rows)
    scores = generator.normal(size=rows)
    return records_of(scores, np.where(scores < -1, -true, true), true)


def test_a_record_is_wrong_if_both_advantages_have_signs_that_differ() -> None:
    records = records_of([0] * 6, [1, -1, 1, 0, 2, -3], [1, 1, -2, 5, 0, -1])
    found = summary_of(records, np.arange(6))
    assert (found.count, found.judged, found.wrong, found.wrong_fraction) == (6, 4, 2, 0.5)
    assert found.positive_fraction == 0.5
    assert found.mean_size == pytest.approx(8 / 6)
    assert found.mean_difference == pytest.approx((0 + 2 + 3 + 5 + 2 + 2) / 6)
    assert summary_of(records, np.array([3, 4])).wrong_fraction is None


def test_the_ends_are_the_lowest_and_the_highest_scores_in_their_order() -> None:
    found = diagnose(records_of([3, -5, 0, 9, -1, 4], [1] * 6, [1, -1, 1, 1, -1, 1]), count=2)
    assert found.lowest.tolist() == [1, 4]
    assert found.highest.tolist() == [3, 5]
    assert (found.of_lowest.wrong, found.of_highest.wrong, found.of_all.wrong) == (2, 0, 2)


def test_random_records_are_drawn_without_replacement() -> None:
    assert all(len(set(rows.tolist())) == 9 for rows in random_rows(10, count=9, seed=0))
    records = noisy()
    found = diagnose(records, count=100)
    wrong = found.of_all.wrong
    exact = stats.hypergeom(len(records), wrong, 100)
    control = found.control["wrong_fraction"]
    assert control.mean == pytest.approx(wrong / len(records), abs=CONTROL)
    assert (control.low, control.high) == pytest.approx([exact.ppf(q) / 100 for q in (0.025, 0.975)], abs=SAMPLING)
    assert found.of_lowest.wrong_fraction is not None
    assert found.of_lowest.wrong_fraction > control.high
    assert diagnose(records, count=100, seed=1).control != found.control


def test_bins_are_means_of_neighbouring_ranks_with_the_interval_of_student() -> None:
    records = noisy()
    found = diagnose(records, count=20)
    order = records.scores.argsort()
    products = (records.estimates * records.monte_carlo)[order]
    assert [one.first_rank for one in found.product_by_rank[:2]] == [1, 21]
    assert found.product_by_rank[-1].last_rank == 400
    first = found.product_by_rank[0]
    assert first.mean == pytest.approx(products[:20].mean())
    expected = stats.ttest_1samp(products[:20], 0).confidence_interval()
    assert (first.low, first.high) == pytest.approx((expected.low, expected.high))
    assert found.difference_by_rank[0].mean > found.difference_by_rank[-1].mean


def test_the_correlation_is_spearmans_and_its_interval_resamples_clusters() -> None:
    records = noisy()
    found = diagnose(records, count=20).correlation
    assert found is not None
    assert found.interval is not None
    expected = stats.spearmanr(records.scores, records.estimates * records.monte_carlo).statistic
    assert found.value == pytest.approx(expected)
    # Every record of a cluster is a copy: the interval is that of the clusters, and not half as wide.
    copies = {name: np.repeat(getattr(records, name), 4) for name in ("scores", "estimates", "monte_carlo", "clusters")}
    of_copies = diagnose(Records(**copies), count=20).correlation
    assert of_copies is not None
    assert of_copies.interval is not None
    widths = [one[1] - one[0] for one in (found.interval, of_copies.interval)]
    assert widths[1] == pytest.approx(widths[0], rel=RESAMPLING)
    fisher = 2 * 1.96 * np.sqrt((1 + expected**2 / 2) / (400 - 3)) * (1 - expected**2)
    assert widths[0] == pytest.approx(fisher, rel=FORMULA)


def test_few_clusters_have_no_interval_and_equal_products_no_correlation() -> None:
    records = records_of(range(12), range(12), range(12), [0, 1, 2] * 4)
    found = diagnose(records, count=3).correlation
    assert found is not None
    assert (found.value, found.interval, found.clusters) == (pytest.approx(1.0), None, 3)
    assert diagnose(records_of(range(12), range(12), [0] * 12), count=3).correlation is None


def test_few_records_with_a_sign_judge_nothing() -> None:
    few = diagnose(records_of(range(40), [1] * 40, [1] * 9 + [0] * 31), count=20)
    assert (few.of_lowest.judged, few.is_judged) == (9, False)
    enough = diagnose(records_of(range(40), [1] * 40, [1] * 10 + [0] * 30), count=20)
    assert enough.is_judged
    assert not diagnose(records_of(range(40), [1] * 40, [0] * 40), count=20).is_judged


def test_fractions_name_each_label_of_all_records() -> None:
    assert fractions(["right", "wrong", "right", "odd"], [0, 1]) == {"odd": 0.0, "right": 0.5, "wrong": 0.5}
    assert control_of([None, None]) is None
