"""How much the rewards of a prompt vary, from a few of its responses."""

from __future__ import annotations

import torch
from torch import Tensor


def order_by_variance(*, rewards: Tensor, group: Tensor, num_groups: int, generator: torch.Generator) -> Tensor:
    """Return the groups, those whose rewards vary most first.

    The variance of a few rewards is often 0, or that of other groups. Of equal variances, the group whose mean is
    farther from the mean of all rewards comes first, and after that a random one. For rewards of 0 and 1 and groups of
    the same size, this is the order of the posterior mean of p (1 - p), with the prior Beta(m, 1 - m) for the
    probability p of a reward of 1; m is the mean of all rewards. If most responses are wrong, a prompt with right
    responses only is then more promising than one with wrong responses only.

    Args:
        rewards: shape [rows], finite.
        group: shape [rows], int64, in [0, num_groups).
        num_groups: how many groups there are; those without rows come last.
        generator: on the CPU.

    Returns:
        Shape [num_groups], int64, on the CPU, each group once.
    """
    variances, distances = group_variances(rewards=rewards, group=group, num_groups=num_groups)
    order = torch.randperm(num_groups, generator=generator)
    # Stable, so that each order stays where the next one finds equal numbers.
    for numbers in (distances, variances):
        order = order[numbers[order].argsort(descending=True, stable=True)]
    return order


def group_variances(*, rewards: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the variance of the rewards of each group, and the distance of their mean from the mean of all rewards.

    The variance is half of the mean square difference of two rewards: exactly 0 for equal ones, and the same for as
    many rewards of 0 and 1, whatever their order.

    Args:
        rewards: shape [rows], finite.
        group: shape [rows], int64, in [0, num_groups).
        num_groups: how many groups there are.

    Returns:
        Two of shape [num_groups], float64, on the CPU; both -1 for a group without rows.
    """
    rewards, group = rewards.cpu().double(), group.cpu()
    variances, distances = torch.full((2, num_groups), -1.0, dtype=torch.float64)
    mean = rewards.mean()
    for number in group.unique().tolist():
        # Sorted, because a sum of the same numbers in another order may be rounded to another one.
        own = rewards[group == number].sort().values
        variances[number] = (own[:, None] - own).square().mean() / 2
        distances[number] = (own - mean).mean().abs()
    return variances, distances
