"""Reductions of rounds and seconds, against curves that were worked out by hand."""

from __future__ import annotations

import math

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import efficiency, first_round

BASELINE = [1.0, 1.0, 3.0, 2.0, 5.0, 8.0]
"""It rises in rounds 1 (to 1), 3 (to 3), 5 (to 5) and 6 (to 8)."""


@pytest.mark.parametrize(("level", "expected"), [(0, 1), (1, 1), (1.5, 3), (3, 3), (8, 6), (8.1, None)])
def test_the_first_round_is_that_of_at_least_a_level(level: float, expected: int | None) -> None:
    assert first_round(BASELINE, level) == expected


def test_a_curve_beside_the_baseline_is_compared_at_each_level() -> None:
    # It reaches 1 in round 1, 3 in round 2, 5 in round 2 and 8 in round 4: 1 - 1/1, 1 - 2/3, 1 - 2/5, 1 - 4/6.
    found = efficiency([2, 5, 4, 9, 0, 0], BASELINE, seconds=[3] * 6, baseline_seconds=[2] * 6)
    assert found.se_ave == pytest.approx((0 + 1 / 3 + 3 / 5 + 1 / 3) / 4)
    assert found.se_peak == pytest.approx(1 / 3)
    assert found.rt_peak == pytest.approx(1 - 12 / 12)
    assert found.never_reached == 0


def test_a_slower_curve_has_negative_reductions_and_the_baseline_none() -> None:
    assert efficiency([0, 1, 9], [1, 9, 9], seconds=[1] * 3, baseline_seconds=[1] * 3)[:3] == (-0.75, -0.5, -0.5)
    assert efficiency(BASELINE, BASELINE, seconds=[1] * 6, baseline_seconds=[1] * 6) == (0, 0, 0, 0)


def test_what_is_never_reached_is_not_counted_as_a_success() -> None:
    found = efficiency([1, 3, 3, 3, 3, 3], BASELINE, seconds=[1] * 6, baseline_seconds=[1] * 6)
    assert found.se_ave == pytest.approx((0 + 1 / 3) / 2)
    assert math.isnan(found.se_peak)
    assert math.isnan(found.rt_peak)
    assert found.never_reached == 0.5


@pytest.mark.parametrize(
    ("returns", "message"), [([], "0 rounds and 0 seconds"), ([1.0, math.nan], "round 2 is NaN")], ids=["none", "nan"]
)
def test_a_curve_that_is_none_is_one_line(returns: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        efficiency(returns, BASELINE, seconds=[1.0] * len(returns), baseline_seconds=[1.0] * 6)
