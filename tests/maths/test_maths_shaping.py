"""Rewards a token: the outcome on the last response token, never on padding, and nothing lost on the way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ippo_lightning.maths import shape_rewards

# fp64, sums of a few terms
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def batch() -> dict[str, Tensor]:
    """Lengths 3, 1, 4 (as long as the tensor), 0; the second and the third were cut."""
    return {
        "outcome_rewards": torch.tensor([1.0, 0.5, -2.0, 7.0], dtype=torch.float64),
        "kl": torch.randn(4, 4, dtype=torch.float64),
        "mask": torch.arange(4) < torch.tensor([3, 1, 4, 0])[:, None],
        "truncated": torch.tensor([False, True, True, False]),
    }


def test_by_hand() -> None:
    # coefficient 0.5, penalty 3: tokens -0.5 * kl; last tokens -0.5 * 6 + 1 = -2 and -0.5 * 2 + (4 - 3) = 0
    found = shape_rewards(
        outcome_rewards=torch.tensor([1.0, 4.0]),
        kl=torch.tensor([[2.0, 4.0, 6.0], [2.0, 99.0, 99.0]]),
        kl_coef=0.5,
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        truncated=torch.tensor([False, True]),
        missing_eos_penalty=3.0,
    )
    assert found.tolist() == [[-1.0, -2.0, -2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("kl_coef", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_the_rewards_of_an_episode_add_up_to_outcome_less_penalties(kl_coef: float, penalty: float) -> None:
    numbers = batch()
    shaped = shape_rewards(**numbers, kl_coef=kl_coef, missing_eos_penalty=penalty)
    expected = []
    for outcome, kl, mask, cut in zip(*(numbers[n].tolist() for n in numbers), strict=True):
        tokens = [number for number, counts in zip(kl, mask, strict=True) if counts]
        expected.append(outcome - kl_coef * sum(tokens) - penalty * cut if tokens else 0.0)
    torch.testing.assert_close(shaped.sum(dim=1), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_the_outcome_stands_on_the_last_response_token_and_nowhere_else() -> None:
    shaped = shape_rewards(**batch(), kl_coef=0.0, missing_eos_penalty=0.0)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 2], expected[1, 0], expected[2, 3] = 1.0, 0.5, -2.0
    assert torch.equal(shaped, expected)


def test_an_empty_response_has_no_place_for_its_outcome() -> None:
    shaped = shape_rewards(**batch(), kl_coef=0.1, missing_eos_penalty=1.0)
    assert shaped[3].eq(0).all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e300, -7.0])
def test_the_divergence_in_padding_never_matters(garbage: float) -> None:
    numbers = batch()
    filled = numbers | {"kl": numbers["kl"].masked_fill(~numbers["mask"], garbage)}
    shaped = shape_rewards(**filled, kl_coef=0.1, missing_eos_penalty=1.0)
    assert torch.equal(shaped, shape_rewards(**numbers, kl_coef=0.1, missing_eos_penalty=1.0))
    assert shaped[~numbers["mask"]].eq(0).all()


def test_only_cut_responses_pay_for_the_missing_end() -> None:
    numbers = batch()
    plain = shape_rewards(**numbers, kl_coef=0.1, missing_eos_penalty=0.0)
    fined = shape_rewards(**numbers, kl_coef=0.1, missing_eos_penalty=1.5)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1, 0] = expected[2, 3] = -1.5
    torch.testing.assert_close(fined - plain, expected, **EXACT)


def test_a_policy_that_leaves_the_reference_is_paid_less() -> None:
    numbers = batch() | {"kl": torch.ones(4, 4, dtype=torch.float64)}
    shaped = [shape_rewards(**numbers, kl_coef=coef, missing_eos_penalty=0.0) for coef in (0.1, 0.2)]
    assert (shaped[1] - shaped[0])[numbers["mask"]].lt(0).all()
