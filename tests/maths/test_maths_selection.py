"""Who is kept and what it weighs: rules by hand, weights of mean 1 under a cap, ranks that share their sums."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths import (
    effective_sample_size,
    keep_above,
    keep_above_mean_reward,
    keep_at_least,
    keep_positive_advantage,
    keep_random,
    normalise_weights,
    score_power,
)

# fp64, sums of at most a few dozen terms
EXACT = 1e-12

SCORES = torch.tensor([0.5, -1.0, 0.0, 2.0, 1.5], dtype=torch.float64)


def weights_of(
    scores: Tensor, *, keep: Tensor | None = None, power: float = 1.0, max_weight: float | None = None
) -> Tensor:
    """Both steps on one rank."""
    keep = scores > 0 if keep is None else keep
    raw = score_power(scores=scores, keep=keep, power=power)
    return normalise_weights(raw=raw, keep=keep, max_weight=max_weight)


def test_a_score_equal_to_the_threshold_is_dropped() -> None:
    assert keep_above(scores=SCORES, threshold=0.0).tolist() == [True, False, False, True, True]
    assert keep_above(scores=SCORES, threshold=1.5).tolist() == [False, False, False, True, False]
    assert not keep_above(scores=torch.tensor([math.nan]), threshold=-math.inf).any()


@pytest.mark.parametrize("num_kept", [0, 2, 4])
def test_a_random_choice_keeps_as_many_as_asked_for_and_any_of_them(num_kept: int) -> None:
    generator = torch.Generator().manual_seed(3)
    draws = [keep_random(num_episodes=4, num_kept=num_kept, generator=generator) for _ in range(200)]
    assert {int(draw.sum()) for draw in draws} == {num_kept}
    # 6 choices at most, 200 draws: that one never comes has a chance of 6 * (5/6)^200 < 1e-14
    choices = Counter(tuple(draw.nonzero().flatten().tolist()) for draw in draws)
    assert set(choices) == set(combinations(range(4), num_kept))


def test_a_random_choice_is_that_of_its_generator_alone() -> None:
    first = keep_random(num_episodes=50, num_kept=25, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    again = keep_random(num_episodes=50, num_kept=25, generator=torch.Generator().manual_seed(1))
    other = keep_random(num_episodes=50, num_kept=25, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_sign_of_an_advantage_is_that_of_its_mean_over_the_response() -> None:
    # means 1/2, -1/2 (the 9 is padding), 0, and no token at all
    advantages = torch.tensor([[2.0, -1.0, math.nan], [-0.5, 9.0, 9.0], [1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert keep_positive_advantage(advantages=advantages, mask=mask).tolist() == [True, False, False, False]


def test_a_reward_has_to_lie_above_the_mean() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.5])
    kept = keep_above_mean_reward(outcome_rewards=rewards, mean_reward=torch.tensor(0.5, dtype=torch.float64))
    assert kept.tolist() == [False, True, False]
    equal = torch.full((4,), 0.1)
    assert not keep_above_mean_reward(outcome_rewards=equal, mean_reward=equal.double().mean()).any()


@pytest.mark.parametrize(
    ("min_keep", "expected"),
    [
        (0, [False, False, False, True, False]),
        (1, [False, False, False, True, False]),
        (2, [False, False, False, True, True]),
        (4, [True, False, True, True, True]),
        (5, [True] * 5),
        (99, [True] * 5),
    ],
)
def test_the_best_of_the_dropped_come_back_until_there_are_enough(min_keep: int, expected: list[bool]) -> None:
    keep = torch.tensor([False, False, False, True, False])
    assert keep_at_least(scores=SCORES, keep=keep, min_keep=min_keep).tolist() == expected
    assert keep.sum() == 1


def test_among_equal_scores_the_first_come_back_first() -> None:
    keep = torch.tensor([False, True, False, False, False])
    scores = torch.tensor([-2.0, -1.0, -1.0, -1.0, -1.0])
    assert keep_at_least(scores=scores, keep=keep, min_keep=3).tolist() == [False, True, True, True, False]


@given(
    scores=st.lists(st.sampled_from([-math.inf, -1.0, -0.5, 0.0, 2.0]), min_size=0, max_size=8),
    min_keep=st.integers(0, 10),
    data=st.data(),
)
def test_nobody_kept_is_lost_and_nobody_better_is_left_out(scores: list[float], min_keep: int, data) -> None:
    size = len(scores)
    keep = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    found = keep_at_least(
        scores=torch.tensor(scores), keep=torch.tensor(keep, dtype=torch.bool), min_keep=min_keep
    ).tolist()
    assert sum(found) == max(sum(keep), min(min_keep, size))
    assert all(after for before, after in zip(keep, found, strict=True) if before)
    added = [score for score, before, after in zip(scores, keep, found, strict=True) if after and not before]
    left = [score for score, after in zip(scores, found, strict=True) if not after]
    assert not added or not left or min(added) >= max(left)


def test_weights_of_the_paper_by_hand() -> None:
    # kept 0.5, 2, 1.5 with mean 4/3: weights 3/8, 12/8, 9/8
    assert weights_of(SCORES).tolist() == pytest.approx([3 / 8, 0, 0, 12 / 8, 9 / 8], rel=EXACT)


def test_power_zero_is_the_filter_alone() -> None:
    keep = torch.tensor([True, True, True, False, False])
    # exactly 1 for every kept one, also where the score is not positive
    assert weights_of(SCORES, keep=keep, power=0.0).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_power_bends_the_weights() -> None:
    # squares 0.25, 4, 2.25 with mean 13/6
    assert weights_of(SCORES, power=2.0).tolist() == pytest.approx(
        [0.25 * 6 / 13, 0, 0, 4 * 6 / 13, 2.25 * 6 / 13], rel=EXACT
    )
    roots = [math.sqrt(number) for number in (0.5, 2.0, 1.5)]
    mean = sum(roots) / 3
    assert weights_of(SCORES, power=0.5).tolist() == pytest.approx(
        [roots[0] / mean, 0, 0, roots[1] / mean, roots[2] / mean], rel=EXACT
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_what_is_dropped_weighs_nothing_and_nothing_weighs_less(power: float) -> None:
    keep = torch.tensor([True, True, False, False, True])
    raw = score_power(scores=SCORES, keep=keep, power=power)
    assert raw[~keep].eq(0).all()
    assert raw.ge(0).all()
    assert score_power(scores=SCORES.masked_fill(~keep, math.nan), keep=keep, power=power).equal(raw)


def test_a_kept_one_without_a_positive_score_weighs_as_the_lightest_that_has_one() -> None:
    keep = torch.tensor([True, True, False, True, True])
    # raw 0.5, 0.5 in place of -1, 2, 1.5 with mean 4.5 / 4
    expected = [number * 4 / 4.5 for number in (0.5, 0.5, 0.0, 2.0, 1.5)]
    assert weights_of(SCORES, keep=keep).tolist() == pytest.approx(expected, rel=EXACT)


def test_kept_ones_where_nobody_has_a_positive_score_weigh_one_each() -> None:
    keep = torch.tensor([False, True, True])
    assert weights_of(torch.tensor([3.0, -1.0, 0.0]), keep=keep).tolist() == [0.0, 1.0, 1.0]


def test_nobody_kept_is_nobody_weighted() -> None:
    keep = torch.zeros(5, dtype=torch.bool)
    for power in (0.0, 1.0):
        assert weights_of(SCORES, keep=keep, power=power, max_weight=2.0).tolist() == [0.0] * 5
    assert weights_of(SCORES[:0]).shape == (0,)


POSITIVE = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@given(numbers=POSITIVE, factor=st.floats(1e-6, 1e6), power=st.sampled_from([0.5, 1.0, 2.0]))
def test_the_scale_of_the_scores_does_not_matter(numbers: list[float], factor: float, power: float) -> None:
    scores = torch.tensor(numbers, dtype=torch.float64)
    expected = weights_of(scores, power=power).tolist()
    assert weights_of(factor * scores, power=power).tolist() == pytest.approx(expected, rel=1e-11)


@given(numbers=POSITIVE, max_weight=st.floats(1, 8))
def test_capped_weights_keep_their_mean_their_cap_and_their_order(numbers: list[float], max_weight: float) -> None:
    scores = torch.tensor([*numbers, -1.0], dtype=torch.float64)
    weights = weights_of(scores, max_weight=max_weight)
    assert weights[-1] == 0
    kept = weights[:-1]
    assert kept.mean().item() == pytest.approx(1, rel=EXACT)
    assert kept.max().item() <= max_weight
    ordered = kept[scores[:-1].argsort()]
    # equal scores may differ by the last bit, no more
    assert (ordered.diff() >= -1e-14).all()
    # what the cap does not touch stays in proportion to its score
    free = kept < max_weight
    shares = (kept / scores[:-1])[free]
    assert shares.numel() == 0 or shares.max().item() == pytest.approx(shares.min().item(), rel=1e-11)


def test_a_cap_by_hand() -> None:
    # weights 5 * (1, 2, 3, 4, 40) / 50 = 0.1, 0.2, 0.3, 0.4, 4. Cap 2: the other four share 3 in proportion 1:2:3:4
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 40.0], dtype=torch.float64)
    assert weights_of(scores, max_weight=2.0).tolist() == pytest.approx([0.3, 0.6, 0.9, 1.2, 2.0], rel=EXACT)
    # cap 1.1: four share 3.9 as 0.39, 0.78, 1.17, 1.56; two go over, 1.7 is shared as 0.57, 1.13; one more, 0.6 is left
    assert weights_of(scores, max_weight=1.1).tolist() == pytest.approx([0.6, 1.1, 1.1, 1.1, 1.1], rel=EXACT)


def test_a_cap_of_one_makes_all_equal_and_a_wide_one_changes_nothing() -> None:
    assert weights_of(SCORES, max_weight=1.0)[SCORES > 0].tolist() == pytest.approx([1.0] * 3, rel=EXACT)
    for wide in (10.0, math.inf):
        assert torch.equal(weights_of(SCORES, max_weight=wide), weights_of(SCORES))


@pytest.mark.parametrize("max_weight", [0.99, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(max_weight: float) -> None:
    with pytest.raises(UserError, match=rf"max_weight: {max_weight} is out of range; expected a number >= 1"):
        weights_of(SCORES, max_weight=max_weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_of_the_precision_of_the_scores(dtype: torch.dtype) -> None:
    scores = SCORES.to(dtype)
    raw = score_power(scores=scores, keep=scores > 0, power=1.0)
    weights = normalise_weights(raw=raw, keep=scores > 0, max_weight=1.2)
    assert raw.dtype == weights.dtype == dtype


@pytest.mark.parametrize(
    ("weights", "expected"),
    # (sum w)^2 / sum w^2: 9 / 3, 1 / 1, 16 / 10, nothing
    [([1.0, 1.0, 1.0], 3.0), ([0.0, 1.0, 0.0], 1.0), ([3.0, 1.0, 0.0], 1.6), ([0.0, 0.0], 0.0), ([], 0.0)],
)
def test_effective_sample_size_by_hand(weights: list[float], expected: float) -> None:
    assert effective_sample_size(weights=torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-6)


@given(numbers=POSITIVE, factor=st.floats(1e-3, 1e3))
def test_effective_sample_size_lies_between_one_and_all_whatever_the_scale(numbers: list[float], factor: float) -> None:
    weights = torch.tensor(numbers, dtype=torch.float64)
    size = effective_sample_size(weights=weights).item()
    assert 1 - EXACT <= size <= len(numbers) + 1e-9
    assert effective_sample_size(weights=factor * weights).item() == pytest.approx(size, rel=1e-11)


# --- numbers near the ends of their range -------------------------------------------------------------------

EXTREMES = [0.0, 1e-45, 1e-38, 1e-25, 1e-10, 1.0, 1e10, 1e25, 3e38]


def oracle(raw: list[float]) -> list[float]:
    """Weights with mean 1 in exact fractions."""
    exact = [Fraction(number) for number in raw]
    return [float(number * len(exact) / sum(exact)) for number in exact]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(raw=st.lists(st.sampled_from(EXTREMES), min_size=1, max_size=6).filter(any))
def test_weights_of_any_size_have_mean_one(dtype: torch.dtype, raw: list[float]) -> None:
    rows = torch.tensor(raw, dtype=dtype)
    weights = normalise_weights(raw=rows, keep=torch.ones(len(raw), dtype=torch.bool))
    assert weights.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else EXACT
    # A weight that is 1e-38 of another rounds to 0 in float32.
    assert weights.tolist() == pytest.approx(oracle(rows.tolist()), rel=tolerance, abs=1e-37)


@given(raw=st.lists(st.sampled_from([*EXTREMES, 1e-320, 1e-300, 1e300]), min_size=1, max_size=6).filter(any))
def test_the_effective_sample_size_of_any_weights_is_that_of_exact_fractions(raw: list[float]) -> None:
    exact = [Fraction(number) for number in raw]
    expected = float(sum(exact) ** 2 / sum(number**2 for number in exact))
    size = effective_sample_size(weights=torch.tensor(raw, dtype=torch.float64)).item()
    assert size == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("raw", [[1e25] * 4, [1e-25] * 4, [3e38] * 4, [1e-45] * 4])
def test_equal_weights_count_as_many_whatever_their_size(raw: list[float]) -> None:
    assert effective_sample_size(weights=torch.tensor(raw)).item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    scores=st.lists(st.sampled_from([-1e25, *EXTREMES]), min_size=1, max_size=6),
    power=st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 10.0, 1e3, 1e300]),
    cap=st.sampled_from([None, 1.0, 1.5, 1e30, math.inf]),
)
def test_scores_of_any_size_to_any_power_give_finite_weights(
    dtype: torch.dtype, scores: list[float], power: float, cap: float | None
) -> None:
    rows, keep = torch.tensor(scores, dtype=dtype), torch.ones(len(scores), dtype=torch.bool)
    raw = score_power(scores=rows, keep=keep, power=power)
    assert bool((torch.isfinite(raw) & (raw > 0)).all())
    # The order of the scores is that of the weights.
    order = rows.clamp(min=0).argsort()
    assert bool((raw[order].diff() >= 0).all()) or bool((rows <= 0).any())
    weights = normalise_weights(raw=raw, keep=keep, max_weight=cap)
    assert bool(torch.isfinite(weights).all())
    assert float(weights.double().mean()) == pytest.approx(1.0, rel=1e-5)
    assert float(effective_sample_size(weights=weights)) >= 1 - 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    keep = torch.tensor([True, True])
    with pytest.raises(UserError, match="weights: NaN or infinity; expected finite weights >= 0"):
        normalise_weights(raw=torch.tensor([1.0, value]), keep=keep)
    if math.isinf(value):
        with pytest.raises(UserError, match="scores: a kept score is infinite"):
            score_power(scores=torch.tensor([1.0, value]), keep=keep, power=1.0)
