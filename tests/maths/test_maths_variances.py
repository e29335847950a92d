"""The variance of a few rewards, and the order of prompts by it, against fractions and the posterior of a prior."""

from __future__ import annotations

from fractions import Fraction
from statistics import pvariance

import pytest
import torch

from ippo_lightning.maths import group_variances, order_by_variance


def rows_of(groups: list[list[float]]) -> dict[str, torch.Tensor | int]:
    rewards = torch.tensor([reward for rewards in groups for reward in rewards])
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(rewards) for rewards in groups]))
    return {"rewards": rewards, "group": group, "num_groups": len(groups)}


def order_of(groups: list[list[float]], *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = order_by_variance(**rows_of(groups), generator=generator).tolist()  # type: ignore[arg-type]
    return order


def test_variances_and_distances_of_a_case_by_hand() -> None:
    # the mean of all eight rewards is 3 / 8
    variances, distances = group_variances(**rows_of([[0, 1], [1, 1], [0, 0], [0, 0]]))  # type: ignore[arg-type]
    assert variances.tolist() == [1 / 4, 0, 0, 0]
    assert distances.tolist() == [1 / 8, 5 / 8, 3 / 8, 3 / 8]


def test_a_group_of_any_size_has_the_variance_that_fractions_give() -> None:
    groups = [[0.5, 2.0, -1.25], [3.0], [0.25, 0.5, 0.75, 4.0]]
    variances, _ = group_variances(**rows_of(groups))  # type: ignore[arg-type]
    assert variances.tolist() == pytest.approx([float(pvariance(map(Fraction, group))) for group in groups])


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e30, -7.3])
def test_equal_rewards_have_a_variance_of_exactly_0(reward: float) -> None:
    variances, _ = group_variances(**rows_of([[reward] * 3, [0.0, reward, reward]]))  # type: ignore[arg-type]
    assert variances[0] == 0 < variances[1]


def posterior(rewards: list[float], mean: Fraction) -> Fraction:
    """E[p (1 - p)] of Beta(mean + right, 1 - mean + wrong), written from the moments of the distribution."""
    right, wrong = mean + Fraction(sum(rewards)), 1 - mean + len(rewards) - Fraction(sum(rewards))
    total = right + wrong
    return right / total - right * (right + 1) / (total * (total + 1))


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("others", ["mostly wrong", "mostly right", "as many of each"])
def test_rewards_of_0_and_1_are_ordered_as_by_the_posterior_of_a_beta_prior(size: int, others: str) -> None:
    groups = [[1.0] * right + [0.0] * (size - right) for right in range(size + 1)]
    groups += {"mostly wrong": [groups[0]], "mostly right": [groups[-1]], "as many of each": []}[others] * 4
    mean = Fraction(sum(map(sum, groups))) / (size * len(groups))
    expected = [posterior(group, mean) for group in groups]
    found = [expected[number] for number in order_of(groups)]
    assert found == sorted(expected, reverse=True)
    assert len(set(found)) > 1 or size == 1, "the case orders something"


def test_a_variance_counts_more_than_a_mean_that_is_far_away() -> None:
    assert order_of([[9.0, 9.0], [0.0, 0.1], [0.0, 0.2], [0.0, 0.0]])[:3] == [2, 1, 0]


def test_ties_are_broken_at_random_whatever_the_order_of_the_rewards() -> None:
    ties = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    first = [order_of(ties, seed=seed) for seed in range(30)]
    assert {order[0] for order in first} == {0, 1, 2}
    assert all(order[3] == 3 for order in first)
    assert order_of(ties, seed=4) == first[4]


def test_a_group_without_rows_comes_last() -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0, 0, 2, 2])
    order = order_by_variance(rewards=torch.zeros(4), group=group, num_groups=4, generator=generator)
    assert set(order[2:].tolist()) == {1, 3}
