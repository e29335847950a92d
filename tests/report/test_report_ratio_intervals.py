"""Intervals where the bootstrap has no width: against Wilson's of scipy, and Tango's equation solved by numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from ippo_lightning.report.ratio_intervals import Ratio, ratio_interval

Z = 1.959963984540054


def fraction(parts: list[float], wholes: list[float] | None = None) -> Ratio:
    return Ratio(np.array(parts, dtype=float), np.array(wholes or [1.0] * len(parts)), is_fraction=True)


# scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson"), scipy 1.16
WILSON = {
    (60, 60): (0.9398281478579101, 1.0),
    (0, 60): (0.0, 0.06017185214208986),
    (3, 3): (0.4385029682449546, 1.0),
    (0, 200): (0.0, 0.018845326377266575),
}


@pytest.mark.parametrize(("right", "prompts"), WILSON)
def test_all_right_or_none_right_is_the_interval_of_wilson(right: int, prompts: int) -> None:
    found = ratio_interval(fraction([float(right > 0)] * prompts))
    assert found == pytest.approx(WILSON[right, prompts], abs=1e-12)


def tango(gained: int, lost: int, prompts: int) -> list[float]:
    """Both ends of the score interval of a difference of paired proportions, from the equation of the paper."""

    def score(delta: float) -> float:
        middle = -gained - lost + (2 * prompts - gained + lost) * delta
        last = -lost * delta * (1 - delta)
        rest = (math.sqrt(middle**2 - 8 * prompts * last) - middle) / (4 * prompts)
        return (gained - lost - prompts * delta) / math.sqrt(prompts * (2 * rest + delta * (1 - delta)))

    middle = (gained - lost) / prompts
    if middle == 0:  # without a prompt that differs the equation is 0 / 0 below 0; it is symmetric
        high = float(optimize.brentq(lambda delta: score(delta) + Z, 1e-9, 1 - 1e-9))
        return [-high, high]
    low = optimize.brentq(lambda delta: score(delta) - Z, -1 + 1e-9, middle - 1e-9)
    assert middle == 1
    return [float(low), 1.0]


@pytest.mark.parametrize("prompts", [5, 60])
def test_a_difference_that_is_the_same_for_each_prompt_is_that_of_tango(prompts: int) -> None:
    right, wrong = fraction([1.0] * prompts), fraction([0.0] * prompts)
    mixed = fraction([float(place % 2) for place in range(prompts)])
    for one in (right, wrong, mixed):
        # At a difference of 0 the equation divides 0 by 0 on the side of negative ones; it is symmetric.
        assert ratio_interval(one, minus=one) == pytest.approx(tango(0, 0, prompts), abs=1e-9)
    assert ratio_interval(right, minus=wrong) == pytest.approx(tango(prompts, 0, prompts), abs=1e-9)


def test_several_samples_count_as_one_prompt() -> None:
    low, high = ratio_interval(fraction([8.0] * 60, [8.0] * 60)) or (0.0, 0.0)
    assert (low, high) == pytest.approx(WILSON[60, 60], abs=1e-12)


def test_prompts_with_the_same_part_of_right_samples_are_not_certain() -> None:
    # At most 1 - 0.9398 of the prompts differ; these may have any fraction from 0 to 1.
    found = ratio_interval(fraction([2.0] * 60, [8.0] * 60))
    others = WILSON[0, 60][1]
    assert found == pytest.approx([0.25 * (1 - others), 0.25 + 0.75 * others], abs=1e-12)


def test_a_number_without_bounds_has_no_interval_if_it_never_varies() -> None:
    tokens = Ratio(np.full(60, 16.0), np.ones(60))
    assert ratio_interval(tokens) is None
    assert ratio_interval(tokens, minus=tokens) is None
    assert ratio_interval(Ratio(np.full(60, 0.1), np.ones(60))) is None  # its sums differ by rounding


def test_an_end_that_resamples_without_a_number_leave_open_is_not_given() -> None:
    """With m of n prompts that count, about exp(-m) of the resamples have none: more than 2.5 % up to m = 3."""
    for counted, has_interval in ((2, False), (3, False), (5, True)):
        parts = [float(place == 0) for place in range(60)]
        wholes = [float(place < counted) for place in range(60)]
        assert (ratio_interval(fraction(parts, wholes)) is not None) == has_interval
    assert ratio_interval(fraction([1.0, 0.0], [1.0, 0.0])) is None  # one prompt counts


def test_where_prompts_differ_the_interval_is_that_of_the_bootstrap() -> None:
    """Six of 60 are wrong: the binomial distribution of the wrong ones among 60 draws, counted out."""
    found = ratio_interval(fraction([0.0] * 6 + [1.0] * 54))
    below = [math.comb(60, k) * 0.1**k * 0.9 ** (60 - k) for k in range(20)]
    most, least = (next(k for k in range(20) if sum(below[: k + 1]) >= level) for level in (0.975, 0.025))
    assert found == pytest.approx([1 - most / 60, 1 - least / 60], abs=1e-12)


def falls_nowhere(found: list[list[float] | None]) -> bool:
    ends = np.array(found, dtype=float)
    return bool((np.diff(ends, axis=0) >= -1e-12).all())


@pytest.mark.parametrize("prompts", [10, 60, 128])
def test_more_right_responses_never_give_a_lower_end(prompts: int) -> None:
    # Of many prompts not every number in the middle, which would take seconds.
    numbers = sorted({*range(6), *range(0, prompts, 1 + prompts // 12), *range(prompts - 5, prompts + 1)})
    given = [fraction([1.0] * right + [0.0] * (prompts - right)) for right in numbers]
    assert falls_nowhere([ratio_interval(one) for one in given])
    assert falls_nowhere([ratio_interval(one, minus=given[-1]) for one in given])


def test_one_response_more_of_several_samples_never_gives_a_lower_end() -> None:
    """Each of 12 prompts with 4 samples in turn gets one response more."""
    turns = [place for _ in range(4) for place in range(12)]
    right = [np.bincount(turns[:count], minlength=12).tolist() for count in range(49)]
    given = [fraction([float(one) for one in column], [4.0] * 12) for column in right]
    assert falls_nowhere([ratio_interval(one) for one in given])
    assert falls_nowhere([ratio_interval(one, minus=given[24]) for one in given])


def test_few_prompts_that_differ_do_not_make_a_difference_certain() -> None:
    """Tango's interval of one lost prompt of 60 is [-0.089, +0.046]; the bootstrap alone ends at 0."""
    right = fraction([1.0] * 60)
    for lost in (1, 2, 3):
        low, high = ratio_interval(fraction([0.0] * lost + [1.0] * (60 - lost)), minus=right) or (0.0, 0.0)
        assert high == pytest.approx(tango(0, 0, 60)[1], abs=1e-9)
        assert low <= tango(0, 0, 60)[0] + 1e-9
    assert ratio_interval(fraction([0.0] + [1.0] * 59)) == pytest.approx(WILSON[60, 60], abs=1e-12)
