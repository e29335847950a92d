"""The predicted gain: against a calculation by hand, and the coverage of its interval where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from ippo_lightning.errors import UserError
from ippo_lightning.maths import GainEstimate, cross_fitted_gain, pooled_gain
from ippo_lightning.selection.predicted_gain import interval

COVERAGE = 0.95
NUM_RUNS = 200
SLACK = 0.04
"""Two and a half standard errors of a fraction of 0.95 over so many runs."""


def test_one_half_measures_what_the_other_half_has_chosen() -> None:
    # by hand: even groups choose rows 0 and 1, odd groups choose row 2 alone
    scores = torch.tensor([[1, 2, -1], [3, 5, 9], [1, 2, -1], [1, 3, 9]], dtype=torch.float64)
    weights = torch.tensor([[1, 1, 0], [0, 0, 2]], dtype=torch.float64)
    found = cross_fitted_gain(group_scores=scores, weights=weights, clusters=torch.tensor([0, 1, 2]))
    # half 0 chose: means of rows 0 and 1 along the odd groups, (2 + 4) / 2; half 1 chose: row 2 along the even groups
    assert found.mean == pytest.approx((3 + -1) / 2)
    # groups gave 4 and 2: variance 2 / 2; rows 2 and 4 around 3: (0.5^2 + 0.5^2) * 3 / 2; pairs: 4 parts
    parts = [(3 - 3) / 4, (5 - 3) / 4, (1 - 3) / 4, (3 - 3) / 4]
    beyond = 0.75 - sum(part**2 for part in parts)
    # the second half has no spread at all
    assert found.of_demonstrations == pytest.approx(1.0 / 2)
    assert found.of_rows == pytest.approx(math.sqrt(beyond) / 2)
    assert found.standard_error == pytest.approx(math.sqrt(1.0 + beyond) / 2)
    assert found.degrees_of_freedom == pytest.approx((1.0 + beyond) ** 2 / (1.0**2 / 1 + 0.75**2 / 2) + 1)


def test_responses_to_one_prompt_count_as_one() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    weights, clusters = torch.ones(2, 20, dtype=torch.float64), torch.arange(20)
    single = cross_fitted_gain(group_scores=scores, weights=weights, clusters=clusters)
    copied = cross_fitted_gain(
        group_scores=scores.repeat(1, 3), weights=weights.repeat(1, 3), clusters=clusters.repeat(3)
    )
    assert copied[:4] == pytest.approx(single[:4])


def test_nothing_kept_promises_nothing() -> None:
    zeros = torch.zeros(2, 5)
    found = cross_fitted_gain(group_scores=torch.ones(4, 5), weights=zeros, clusters=torch.arange(5))
    assert (found.mean, found.standard_error) == (0, 0)


def test_the_gain_along_each_group_is_that_of_the_other_half() -> None:
    scores = torch.arange(10, dtype=torch.float64).view(5, 2)
    weights = torch.tensor([[1, 0], [0, 1]], dtype=torch.float64)
    found = cross_fitted_gain(group_scores=scores, weights=weights, clusters=torch.tensor([0, 1]))
    # even groups chose row 0, which the odd ones measure; odd groups chose row 1
    assert found.along_groups == (1, 2, 5, 6, 9)


def test_the_error_falls_with_more_rollouts_as_far_as_groups_of_demonstrations_differ_anew() -> None:
    constant = [GainEstimate(mean, 3.0, 4.0, 6.0, (1.0, 1.0, 7.0, 7.0)) for mean in (1.0, 2.0, 3.0, 6.0)]
    # two groups of each half, 1 and 7: their mean has the error 3, in each rollout and in all of them together
    assert pooled_gain(constant)[:4] == pytest.approx((3.0, 3.0, 2.0, 6.0))
    turned = [GainEstimate(3.0, 3.0, 4.0, 6.0, groups) for groups in ((1.0, 1.0, 7.0, 7.0), (7.0, 7.0, 1.0, 1.0))]
    assert pooled_gain(turned)[:4] == pytest.approx((3.0, 0.0, math.sqrt(8), 6.0))
    assert constant[0].standard_error == 5.0
    assert constant[0].times(2.0) == (2.0, 6.0, 8.0, 6.0, (2.0, 2.0, 14.0, 14.0))


def test_a_rollout_counts_in_units_of_its_own_error() -> None:
    pooled = pooled_gain([GainEstimate(2.0, 0.0, 1.0, 6.0), GainEstimate(-1000.0, 0.0, 1000.0, 6.0)])
    # 2 and -1 standard errors; the median of the errors is 500.5
    assert pooled[:4] == pytest.approx((500.5 * 0.5, 0.0, 500.5 * math.sqrt(2) / 2, 6.0))


def test_a_rollout_without_anything_kept_counts_as_no_gain() -> None:
    nothing = GainEstimate(0.0, 0.0, 0.0, 3.0)
    assert pooled_gain([GainEstimate(4.0, 0.0, 2.0, 5.0), nothing])[:4] == pytest.approx((2.0, 0.0, 1.0, 4.0))
    assert pooled_gain([nothing, nothing])[:4] == (0.0, 0.0, 0.0, 3.0)


@pytest.mark.parametrize(("signal", "found"), [(0.0, 1 - COVERAGE), (1.0, 0.88)])
def test_ten_rollouts_of_any_scale_find_a_gain_as_often_as_ten_of_one_scale(signal: float, found: float) -> None:
    """With ten draws of mean 1 and error 1, a z-test at 95 % finds 0.885 of the gains."""
    generator = torch.Generator().manual_seed(0)
    above = below = 0
    for _ in range(NUM_RUNS):
        noise = torch.randn(10, generator=generator).tolist()
        scales = (10 ** (4 * torch.rand(10, generator=generator) - 2)).tolist()
        pooled = pooled_gain(
            [GainEstimate(size * (signal + one), 0.0, size, 1e6) for size, one in zip(scales, noise, strict=True)]
        )
        low, high = interval(pooled, confidence=COVERAGE)
        above, below = above + (low > 0), below + (high < 0)
    assert (above + below) / NUM_RUNS == pytest.approx(found, abs=2 * SLACK)
    assert not signal or not below


def test_fewer_than_two_groups_for_each_half_are_refused() -> None:
    with pytest.raises(UserError, match="3 groups of demonstrations; expected at least 4"):
        cross_fitted_gain(group_scores=torch.ones(3, 5), weights=torch.ones(2, 5), clusters=torch.arange(5))


def demonstrations(signal: float, generator: torch.Generator) -> torch.Tensor:
    """Return the mean gradients of 8 groups of 8 demonstrations, shape [8, 12]."""
    expected = torch.zeros(12, dtype=torch.float64)
    expected[0] = signal
    return (expected + torch.randn(64, 12, generator=generator, dtype=torch.float64)).view(8, 8, 12).mean(dim=0)


def drawn(
    signal: float, generator: torch.Generator, groups: torch.Tensor | None = None
) -> tuple[GainEstimate, float, tuple[float, float]]:
    """Return the estimate, the truth, and the plain mean of the kept scores with its interval.

    Args:
        signal: of the expected gradient of a demonstration.
        generator: of all numbers.
        groups: gradients of the demonstrations; drawn anew if not given.
    """
    width, prompts, responses = 12, 32, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def rows(count: int) -> torch.Tensor:
        return (normal(count, 1, width) + normal(count, responses, width)).flatten(end_dim=1)

    expected = torch.zeros(width, dtype=torch.float64)
    expected[0] = signal
    groups = demonstrations(signal, generator) if groups is None else groups
    gradients = rows(prompts)
    scores = groups @ gradients.T

    def keep(gradients: torch.Tensor, half: int) -> torch.Tensor:
        return (gradients @ groups[half::2].mean(dim=0) > 0).double()

    weights = torch.stack([keep(gradients, half) for half in (0, 1)])
    clusters = torch.arange(prompts).repeat_interleave(responses)
    estimate = cross_fitted_gain(group_scores=scores, weights=weights, clusters=clusters)
    many = rows(1000)
    truth = [float((many @ expected)[keep(many, half) > 0].mean()) for half in (0, 1)]
    kept = scores.mean(dim=0)
    kept = kept[kept > 0]
    half_width = 1.96 * float(kept.std()) / math.sqrt(len(kept))
    return estimate, sum(truth) / 2, (float(kept.mean()) - half_width, float(kept.mean()) + half_width)


@pytest.mark.parametrize("signal", [0.0, 0.5])
def test_the_interval_contains_the_truth_as_often_as_it_says(signal: float) -> None:
    generator = torch.Generator().manual_seed(1)
    errors, covered, plain = [], 0, 0
    for _ in range(NUM_RUNS):
        found, truth, (low, high) = drawn(signal, generator)
        width = float(stats.t.ppf((1 + COVERAGE) / 2, found.degrees_of_freedom)) * found.standard_error
        covered += abs(found.mean - truth) <= width
        plain += low <= truth <= high
        errors.append(found.mean - truth)
    assert covered / NUM_RUNS >= COVERAGE - SLACK
    # unbiased: the mean error is within three standard errors of zero
    spread = torch.tensor(errors, dtype=torch.float64)
    assert abs(float(spread.mean())) < 3 * float(spread.std()) / math.sqrt(NUM_RUNS)
    # the mean of the kept scores, which are positive by construction, almost never is
    assert plain / NUM_RUNS < 0.2


@pytest.mark.parametrize(("signal", "fewest", "most"), [(0.0, 0.0, 1 - COVERAGE + SLACK), (1.0, 0.9, 1.0)])
def test_ten_rollouts_along_the_same_demonstrations_rarely_find_a_gain_where_none_is(
    signal: float, fewest: float, most: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    found = 0
    for _ in range(NUM_RUNS // 4):
        groups = demonstrations(signal, generator)
        low, _ = interval(pooled_gain([drawn(signal, generator, groups)[0] for _ in range(10)]), confidence=COVERAGE)
        found += low > 0
    assert fewest <= found / (NUM_RUNS // 4) <= most
