"""Masked sums: padding never matters, halves add up to the whole, whitening stays finite; how the room is called."""

from __future__ import annotations

import inspect
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning import maths
from ippo_lightning.maths import (
    Moments,
    masked_mean,
    masked_moments,
    masked_row_mean,
    masked_sum,
    mean_and_variance,
    whiten,
)

# fp64, sums of at most a few hundred numbers
EXACT = {"rtol": 1e-12, "atol": 1e-12}

VALUES = torch.tensor([[1.0, 2.0, 6.0], [5.0, 7.0, 8.0], [3.0, 4.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])

GARBAGE = [math.nan, math.inf, -math.inf, 1e300, -7.0]


def statistics_of(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return mean_and_variance(masked_moments(values=values, mask=mask))


def chosen(values: Tensor, mask: Tensor) -> list[float]:
    """The masked values, one by one."""
    pairs = zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True)
    return [value for value, counts in pairs if counts]


def test_sum_mean_and_row_means_by_hand() -> None:
    # 1 + 2 + 5 = 8 over 3 tokens; rows: (1 + 2) / 2, 5 / 1, nothing
    assert masked_sum(values=VALUES, mask=MASK).item() == 8.0
    assert masked_mean(values=VALUES, mask=MASK).item() == pytest.approx(8 / 3, rel=1e-15)
    assert masked_row_mean(values=VALUES, mask=MASK).tolist() == [1.5, 5.0, 0.0]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_row_mean, masked_moments])
def test_what_stands_in_padding_never_matters(function, garbage: float) -> None:
    filled = VALUES.masked_fill(~MASK, garbage)
    torch.testing.assert_close(
        function(values=filled, mask=MASK), function(values=VALUES, mask=MASK), rtol=0, atol=0, equal_nan=False
    )


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_row_mean])
def test_padding_gets_no_gradient_even_where_it_is_nan(function) -> None:
    values = VALUES.masked_fill(~MASK, math.nan).requires_grad_()
    function(values=values, mask=MASK).sum().backward()
    assert values.grad[~MASK].eq(0).all()
    assert values.grad[MASK].gt(0).all()


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_row_mean])
def test_an_empty_mask_gives_zero(function) -> None:
    result = function(values=VALUES, mask=torch.zeros_like(MASK))
    assert result.eq(0).all()
    moments = masked_moments(values=VALUES, mask=torch.zeros_like(MASK))
    assert [number.item() for number in (*moments, *mean_and_variance(moments))] == [0.0] * 5


@given(numbers=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), extra=st.integers(0, 3))
def test_moments_are_those_of_the_masked_values(numbers: list[float], extra: int) -> None:
    values = torch.tensor([numbers + [math.nan] * extra], dtype=torch.float64)
    mean, variance = statistics_of(values, ~values.isnan())
    assert mean.item() == pytest.approx(statistics.fmean(numbers), rel=1e-12, abs=1e-12)
    # sums of squares up to 1e6 lose about 1e-16 of that to rounding
    assert variance.item() == pytest.approx(statistics.pvariance(numbers), rel=1e-9, abs=1e-9)


def test_the_moments_of_two_ranks_add_up_to_those_of_the_whole() -> None:
    values, mask = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5) < 0.6
    parts = [masked_moments(values=values[rows], mask=mask[rows]) for rows in (slice(0, 2), slice(2, 6))]
    added = Moments(*(sum(numbers) for numbers in zip(*parts, strict=True)))
    whole = masked_moments(values=values, mask=mask)
    torch.testing.assert_close(added, whole, **EXACT)
    # and whitening by the shared numbers is whitening the whole
    mean, variance = mean_and_variance(added)
    halves = [whiten(values=values[r], mask=mask[r], mean=mean, variance=variance) for r in (slice(0, 2), slice(2, 6))]
    mean, variance = mean_and_variance(whole)
    torch.testing.assert_close(
        torch.cat(halves), whiten(values=values, mask=mask, mean=mean, variance=variance), **EXACT
    )


def test_the_variance_of_large_single_precision_numbers_survives() -> None:
    # 4096 +- 1: squares near 2^24, where single precision could no longer tell them apart once they are summed
    values = torch.tensor([4095.0, 4097.0]).repeat(1, 5000)
    moments = masked_moments(values=values, mask=torch.ones_like(values, dtype=torch.bool))
    assert all(number.dtype == torch.float64 for number in moments)
    assert mean_and_variance(moments)[1].item() == pytest.approx(1.0, rel=1e-6)


@given(value=st.floats(-1e6, 1e6), count=st.integers(1, 9))
def test_rounding_never_makes_a_variance_negative(value: float, count: int) -> None:
    values = torch.full((1, count), value, dtype=torch.float64)
    _, variance = statistics_of(values, torch.ones_like(values, dtype=torch.bool))
    assert variance.item() >= 0


def test_whitened_values_have_mean_0_and_variance_1_over_the_whole_batch() -> None:
    values = 3 + 2 * torch.randn(4, 7, dtype=torch.float64)
    mask = torch.rand(4, 7) < 0.5
    mean, variance = statistics_of(values, mask)
    whitened = whiten(values=values, mask=mask, mean=mean, variance=variance)
    numbers = chosen(whitened, mask)
    assert statistics.fmean(numbers) == pytest.approx(0, abs=1e-12)
    # epsilon 1e-8 under the root takes that much off
    assert statistics.pvariance(numbers) == pytest.approx(1, abs=1e-8)
    # not row by row: the rows keep their differences
    assert masked_row_mean(values=whitened, mask=mask).abs().max() > 1e-3
    assert whitened[~mask].eq(0).all()


def test_whitening_by_hand() -> None:
    # 1, 2, 5: mean 8/3, variance (25/9 + 4/9 + 49/9) / 3 = 26/9
    mean, variance = statistics_of(VALUES, MASK)
    assert (mean.item(), variance.item()) == (pytest.approx(8 / 3, rel=1e-14), pytest.approx(26 / 9, rel=1e-14))
    arguments = {"values": VALUES, "mask": MASK, "mean": mean, "variance": variance, "epsilon": 0.0}
    deviation = math.sqrt(26 / 9)
    assert chosen(whiten(**arguments), MASK) == pytest.approx(
        [(1 - 8 / 3) / deviation, (2 - 8 / 3) / deviation, (5 - 8 / 3) / deviation], rel=1e-12
    )
    # with the mean left in place the numbers are the same, shifted back
    assert chosen(whiten(**arguments, shift_mean=False), MASK) == pytest.approx(
        [(number - 8 / 3) / deviation + 8 / 3 for number in (1, 2, 5)], rel=1e-12
    )


def test_epsilon_is_added_to_the_variance() -> None:
    arguments = {"mean": torch.tensor(0.0), "variance": torch.tensor(1.0), "epsilon": 3.0}
    # 2 / sqrt(1 + 3)
    assert whiten(values=torch.tensor([[2.0]]), mask=torch.tensor([[True]]), **arguments).item() == 1.0


@pytest.mark.parametrize("garbage", GARBAGE)
def test_whitening_does_not_see_padding(garbage: float) -> None:
    results = []
    for values in (VALUES, VALUES.masked_fill(~MASK, garbage)):
        mean, variance = statistics_of(values, MASK)
        results.append(whiten(values=values, mask=MASK, mean=mean, variance=variance))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.1], [-1e4], [0.3] * 7, [1e-30] * 3], ids=["one", "one large", "equal", "tiny"])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_a_single_value_or_equal_ones_stay_finite(values: list[float], dtype: torch.dtype, shift_mean: bool) -> None:
    tensor = torch.tensor([values], dtype=dtype)
    mask = torch.ones_like(tensor, dtype=torch.bool)
    mean, variance = statistics_of(tensor, mask)
    whitened = whiten(values=tensor, mask=mask, mean=mean, variance=variance, shift_mean=shift_mean)
    expected = torch.zeros_like(tensor) if shift_mean else tensor
    # the mean's last bit is divided by sqrt(epsilon) = 1e-4
    torch.testing.assert_close(whitened, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_whitening_keeps_the_precision_of_its_input(dtype: torch.dtype) -> None:
    values = VALUES.to(dtype)
    mean, variance = statistics_of(values, MASK)
    assert whiten(values=values, mask=MASK, mean=mean, variance=variance).dtype == dtype


def public_functions() -> list[object]:
    return [member for name in maths.__all__ if inspect.isfunction(member := getattr(maths, name))]


@pytest.mark.parametrize("function", public_functions(), ids=lambda function: function.__name__)
def test_arguments_cannot_be_given_in_the_wrong_order(function) -> None:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    # one argument alone has no order to mistake
    assert len(kinds) == 1 or set(kinds) == {inspect.Parameter.KEYWORD_ONLY}


def test_the_search_for_public_functions_finds_them() -> None:
    assert {"gae", "kl_estimate", "policy_loss_terms", "whiten"} <= {
        function.__name__ for function in public_functions()
    }
