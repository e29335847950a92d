"""PPO's losses against loops and hand-computed numbers; denominators that micro-batches share; sums for the log."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths import LossReduction, policy_loss_terms, reduce_terms, update_diagnostics, value_loss_terms

# fp64, a handful of operations
EXACT = {"rtol": 1e-12, "atol": 1e-12}
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -7.0]
REDUCTIONS = [*get_args(LossReduction)]


def clip(both: float) -> dict[str, float]:
    return {"clip_low": both, "clip_high": both}


CLIP = clip(0.2)


def random_batch(episodes: int = 4, tokens: int = 6) -> dict[str, Tensor]:
    log_probs, old_log_probs = -torch.rand(2, episodes, tokens, dtype=torch.float64)
    return {
        "log_probs": log_probs,
        "old_log_probs": old_log_probs,
        "advantages": torch.randn(episodes, tokens, dtype=torch.float64),
    }


def one_token(ratio: float, advantage: float) -> dict[str, Tensor]:
    numbers = {"log_probs": math.log(ratio), "old_log_probs": 0.0, "advantages": advantage}
    return {name: torch.tensor([[number]], dtype=torch.float64) for name, number in numbers.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # inside the range: -r A, and so is the derivative by the log-prob
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        # outside where the step would gain: the bound, flat
        (1.5, 2.0, -2.4, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        # outside where the step would lose: -r A again
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    numbers = one_token(ratio, advantage)
    numbers["log_probs"].requires_grad_()
    terms = policy_loss_terms(**numbers, **CLIP)
    terms.sum().backward()
    assert terms.item() == pytest.approx(loss, rel=1e-12)
    assert numbers["log_probs"].grad.item() == pytest.approx(slope, rel=1e-12, abs=1e-15)


def test_the_clipped_surrogate_is_that_of_a_loop() -> None:
    numbers = random_batch()
    found = policy_loss_terms(**numbers, **clip(0.1))
    expected = []
    for new, old, advantage in zip(*(numbers[name].flatten().tolist() for name in numbers), strict=True):
        ratio = math.exp(new - old)
        bounded = 1.1 if ratio > 1.1 else 0.9 if ratio < 0.9 else ratio
        expected.append(max(-ratio * advantage, -bounded * advantage))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_at_the_policy_that_sampled_the_gradient_is_that_of_the_policy_gradient() -> None:
    numbers = random_batch()
    log_probs = numbers["old_log_probs"].clone().requires_grad_()
    terms = policy_loss_terms(**numbers | {"log_probs": log_probs}, **CLIP)
    assert torch.equal(terms, -numbers["advantages"])
    terms.sum().backward()
    torch.testing.assert_close(log_probs.grad, -numbers["advantages"], **EXACT)


def test_a_wide_clip_range_is_no_clipping_and_the_way_there_is_continuous() -> None:
    numbers = random_batch()
    unclipped = -(numbers["log_probs"] - numbers["old_log_probs"]).exp() * numbers["advantages"]
    for clip_range in (1e3, 1e9, math.inf):
        torch.testing.assert_close(policy_loss_terms(**numbers, **clip(clip_range)), unclipped, **EXACT)
    assert not torch.allclose(policy_loss_terms(**numbers, **clip(0.1)), unclipped)
    near, nearer = (policy_loss_terms(**numbers, **clip(0.1 + step)) for step in (0.0, 1e-9))
    assert (near - nearer).abs().max() <= 1e-8


def value_numbers() -> dict[str, Tensor]:
    values, old_values, returns = 2 * torch.randn(3, 4, 6, dtype=torch.float64)
    return {"values": values, "old_values": old_values, "returns": returns}


@pytest.mark.parametrize(
    ("value", "expected", "slope"),
    [
        # old value 1, return 3, range 0.5. Unclipped (v - 3)^2 against (clip(v, 0.5, 1.5) - 3)^2, halved
        (1.2, 1.62, -1.8),  # the same: 1.8^2 / 2
        (2.5, 1.125, 0.0),  # 0.5^2 against 1.5^2: the clipped one, flat
        (0.0, 4.5, -3.0),  # 3^2 against 2.5^2: the unclipped one
        (5.5, 3.125, 2.5),  # 2.5^2 against 1.5^2: the unclipped one
    ],
)
def test_the_value_loss_by_hand(value: float, expected: float, slope: float) -> None:
    numbers = {name: torch.tensor([[x]], dtype=torch.float64) for name, x in (("old_values", 1.0), ("returns", 3.0))}
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    terms = value_loss_terms(values=values, **numbers, clip_range=0.5)
    terms.sum().backward()
    assert terms.item() == pytest.approx(expected, rel=1e-12)
    assert values.grad.item() == pytest.approx(slope, rel=1e-12, abs=1e-15)


def test_the_value_loss_is_that_of_a_loop() -> None:
    numbers = value_numbers()
    expected = []
    for value, old, target in zip(*(numbers[name].flatten().tolist() for name in numbers), strict=True):
        near = min(max(value, old - 0.3), old + 0.3)
        expected.append(max((value - target) ** 2, (near - target) ** 2) / 2)
    found = value_loss_terms(**numbers, clip_range=0.3)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_an_infinite_clip_range_is_half_the_squared_error_and_large_ones_lead_there() -> None:
    numbers = value_numbers()
    numbers["values"].requires_grad_()
    plain = 0.5 * (numbers["values"] - numbers["returns"]) ** 2
    slope = (numbers["values"] - numbers["returns"]).detach()
    for clip_range in (1e3, math.inf):
        terms = value_loss_terms(**numbers, clip_range=clip_range)
        torch.testing.assert_close(terms, plain, **EXACT)
        torch.testing.assert_close(torch.autograd.grad(terms.sum(), numbers["values"])[0], slope, **EXACT)
    assert not torch.allclose(value_loss_terms(**numbers, clip_range=0.1), plain)


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
WEIGHTS = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)


def terms_to_reduce() -> Tensor:
    return torch.randn(4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    # rows (3, 6, 0), (4): means 3 and 4, sums 9 and 4, sums over 4 steps 9/4 and 1; weights 1 and 2; over 10
    [
        ("episode_mean", (1 * 3 + 2 * 4) / 10),
        ("token_mean", (1 * 9 + 2 * 4) / 10),
        ("rollout_token_mean", (1 * 9 + 2 * 4) / 10),
        ("fixed_length", (1 * 9 / 4 + 2 * 1) / 10),
    ],
)
def test_reductions_by_hand(reduction: str, expected: float) -> None:
    terms = torch.tensor([[3.0, 6.0, 0.0, 99.0], [4.0, 99.0, 99.0, 99.0]])
    weights = torch.tensor([1.0, 2.0])
    for denominator in (10.0, torch.tensor(10.0)):
        found = reduce_terms(
            terms=terms, mask=MASK[:2], weights=weights, reduction=reduction, denominator=denominator, max_length=4
        )
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_with_weights_of_one_the_reductions_are_plain_means() -> None:
    terms = terms_to_reduce()
    rows = [0, 1, 3]
    means = [terms[row][MASK[row]].mean().item() for row in rows]
    arguments = {"terms": terms[rows], "mask": MASK[rows], "weights": torch.ones(3)}
    found = reduce_terms(**arguments, reduction="episode_mean", denominator=3)
    assert found.item() == pytest.approx(sum(means) / 3, rel=1e-12)
    found = reduce_terms(**arguments, reduction="token_mean", denominator=8)
    assert found.item() == pytest.approx(terms[MASK].mean().item(), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("parts", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_micro_batches_add_up_to_the_undivided_minibatch(reduction: str, parts: list[int]) -> None:
    terms = terms_to_reduce()
    whole = reduce_terms(terms=terms, mask=MASK, weights=WEIGHTS, reduction=reduction, denominator=7.0, max_length=4)
    pieces = [
        reduce_terms(terms=t, mask=m, weights=w, reduction=reduction, denominator=7.0, max_length=4)
        for t, m, w in zip(terms.split(parts), MASK.split(parts), WEIGHTS.split(parts), strict=True)
    ]
    torch.testing.assert_close(sum(pieces), whole, **EXACT)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_neither_loss_nor_gradient(reduction: str, garbage: float) -> None:
    terms = terms_to_reduce()
    results = []
    for values in (terms, terms.masked_fill(~MASK, garbage)):
        leaf = values.clone().requires_grad_()
        loss = reduce_terms(terms=leaf, mask=MASK, weights=WEIGHTS, reduction=reduction, denominator=7.0, max_length=4)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert results[0][1][~MASK].eq(0).all()
    assert results[0][1][MASK].ne(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["log_probs", "old_log_probs", "advantages"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_of_the_inputs_changes_neither_loss_nor_gradient(reduction: str, name: str, garbage: float) -> None:
    numbers = random_batch(4, 4)
    results = []
    for fill in (0.0, garbage):
        filled = {key: tensor.masked_fill(~MASK, 0.0) for key, tensor in numbers.items()}
        filled[name] = filled[name].masked_fill(~MASK, fill)
        log_probs = filled["log_probs"].requires_grad_()
        loss = reduce_terms(
            terms=policy_loss_terms(**filled, **CLIP),
            mask=MASK,
            weights=WEIGHTS,
            reduction=reduction,
            denominator=4.0,
            max_length=4,
        )
        results.append((loss.detach(), torch.autograd.grad(loss, log_probs)[0][MASK]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("mask", "weights"),
    [(torch.zeros_like(MASK), WEIGHTS), (MASK, torch.zeros_like(WEIGHTS))],
    ids=["nothing masked in", "all weights zero"],
)
def test_where_nothing_counts_loss_and_gradient_are_zero(reduction: str, mask: Tensor, weights: Tensor) -> None:
    terms = terms_to_reduce().requires_grad_()
    loss = reduce_terms(terms=terms, mask=mask, weights=weights, reduction=reduction, denominator=1.0, max_length=4)
    loss.backward()
    assert loss.item() == 0.0
    assert terms.grad.eq(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_episode_that_is_left_has_a_finite_loss(reduction: str) -> None:
    terms = terms_to_reduce()[1:2].requires_grad_()
    arguments = {
        "mask": MASK[1:2],
        "weights": WEIGHTS[1:2],
        "reduction": reduction,
        "denominator": 1.0,
        "max_length": 1,
    }
    loss = reduce_terms(terms=terms, **arguments)
    loss.backward()
    # one token, weight 2
    assert loss.item() == pytest.approx(2 * terms[0, 0].item(), rel=1e-12)
    assert terms.grad.tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"reduction: 'mean' is unknown; expected one of episode_mean, token_mean, rollout"
    ):
        reduce_terms(terms=terms_to_reduce(), mask=MASK, weights=WEIGHTS, reduction="mean", denominator=1.0)


def test_an_unmoved_policy_has_ratio_1_divergence_0_and_nothing_clipped() -> None:
    log_probs = random_batch(4, 4)["log_probs"]
    found = update_diagnostics(log_probs=log_probs, old_log_probs=log_probs.clone(), mask=MASK, **CLIP)
    expected = {"clipped_tokens": 0.0, "approx_kl_sum": 0.0, "ratio_sum": 8.0, "tokens": 8.0}
    assert {name: number.item() for name, number in found.items()} == expected


def test_diagnostics_are_those_of_a_loop() -> None:
    numbers = random_batch(4, 4)
    # ratios from 0.5 to 2 across each row, so that some are clipped
    numbers["log_probs"] = numbers["old_log_probs"] + torch.linspace(-0.7, 0.7, 16, dtype=torch.float64).view(4, 4).T
    found = update_diagnostics(
        log_probs=numbers["log_probs"], old_log_probs=numbers["old_log_probs"], mask=MASK, **CLIP
    )
    pairs = zip(numbers["log_probs"][MASK].tolist(), numbers["old_log_probs"][MASK].tolist(), strict=True)
    ratios = [math.exp(new - old) for new, old in pairs]
    assert found["clipped_tokens"].item() == sum(not 0.8 <= ratio <= 1.2 for ratio in ratios)
    assert 0 < found["clipped_tokens"].item() < 8
    # k3 of the old policy against the new one: r - 1 - ln r
    assert found["approx_kl_sum"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), rel=1e-12)
    assert found["ratio_sum"].item() == pytest.approx(sum(ratios), rel=1e-12)
    assert found["tokens"].item() == 8


@given(shift=st.floats(-5, 5))
def test_the_divergence_of_a_moved_policy_is_never_negative(shift: float) -> None:
    old = -torch.rand(4, 4, dtype=torch.float64)
    found = update_diagnostics(log_probs=old + shift, old_log_probs=old, mask=MASK, **CLIP)
    # 8 tokens, each rounded at the last bit of numbers near 1
    assert found["approx_kl_sum"].item() >= -8 * 5e-16


@pytest.mark.parametrize("shift", [-1e-3, 1e-3])
def test_single_precision_sees_a_policy_that_has_hardly_moved(shift: float) -> None:
    log_probs = torch.full((4, 4), shift)
    found = update_diagnostics(log_probs=log_probs, old_log_probs=torch.zeros(4, 4), mask=MASK, **CLIP)
    # 8 tokens of x^2 / 2 = 5e-7, which the last bit of 1 (6e-8) would blur; the next term is a third of the shift
    assert found["approx_kl_sum"].item() == pytest.approx(8 * shift**2 / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["log_probs", "old_log_probs"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_never_reaches_the_log(name: str, garbage: float) -> None:
    numbers = random_batch(4, 4)
    del numbers["advantages"]
    filled = numbers | {name: numbers[name].masked_fill(~MASK, garbage)}
    found = update_diagnostics(**filled, mask=MASK, **CLIP)
    torch.testing.assert_close(found, update_diagnostics(**numbers, mask=MASK, **CLIP), rtol=0, atol=0)


def test_diagnostics_of_two_halves_add_up_and_of_nothing_are_zero() -> None:
    numbers = random_batch(4, 4)
    del numbers["advantages"]
    whole = update_diagnostics(**numbers, mask=MASK, **CLIP)
    halves = [
        update_diagnostics(**{n: t[rows] for n, t in numbers.items()}, mask=MASK[rows], **CLIP)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close({name: halves[0][name] + halves[1][name] for name in whole}, whole, **EXACT)
    nothing = update_diagnostics(**numbers, mask=torch.zeros_like(MASK), **CLIP)
    assert [number.item() for number in nothing.values()] == [0.0] * 4


def test_the_clip_range_changes_what_counts_as_clipped() -> None:
    numbers = random_batch(4, 4)
    del numbers["advantages"]
    counts = [
        update_diagnostics(**numbers, mask=MASK, **clip(clip_range))["clipped_tokens"].item()
        for clip_range in (0.0, 0.2, math.inf)
    ]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[2]) == (8.0, 0.0)
