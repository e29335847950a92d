"""Advantages: generalised advantage estimation, and the other rewards of a group as a baseline."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gae(
    *,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return advantages by generalised advantage estimation.

    delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
    A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 11 to 16. Differs in keeping apart what ends the bootstrap
    (`terminated`) and what ends the trace (`done`). Steps where the mask is False are skipped.

    Args:
        rewards: shape [rows, steps].
        values: V(s_t), shape [rows, steps].
        next_values: V(s_{t+1}), shape [rows, steps].
        terminated: shape [rows, steps], bool, True where nothing comes after the step.
        done: shape [rows, steps], bool, True where the next step belongs to another trajectory.
        mask: shape [rows, steps], bool, True = counts.
        gamma: discount per step, in [0, 1].
        gae_lambda: trace decay per step, in [0, 1].

    Returns:
        Shape [rows, steps], 0.0 where the mask is False.
    """
    # `where`, not a product: 0 * NaN is NaN, and what stands after the end of an episode may be anything.
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    # In NumPy: the recursion is as long as the rollout, and torch takes several times as long for a step of a few
    # numbers. NumPy has no bfloat16.
    wide = torch.promote_types(delta.dtype, torch.float32)
    by_step = delta.detach().to(wide).T.cpu().numpy()
    ends, counts = (column.T.cpu().numpy() for column in (done, mask))
    found = np.zeros_like(by_step)
    later = np.zeros_like(by_step, shape=len(rewards))
    for step in reversed(range(len(by_step))):
        trace = np.where(ends[step], later.dtype.type(0), later) if ends[step].any() else later
        found[step] = by_step[step] + gamma * gae_lambda * trace
        # A step where the mask is False passes the trace on unchanged.
        later = np.where(counts[step], found[step], later)
    advantages = torch.from_numpy(found.T).to(delta)
    return torch.where(mask, advantages, torch.zeros_like(advantages))


def discounted_returns(*, rewards: Tensor, next_values: Tensor, done: Tensor, group: Tensor, gamma: float) -> Tensor:
    """Return the discounted return from each transition on.

    G_t = r_t + gamma * G_{t+1}; where the next row belongs to another trajectory, G_t = r_t + gamma * V(s_{t+1})

    Args:
        rewards: shape [rows], the transitions of each environment side by side and in order.
        next_values: V(s_{t+1}), shape [rows]; 0 where nothing comes after the step.
        done: shape [rows], bool, True where the trajectory ends.
        group: shape [rows], int64, the environment.
        gamma: discount per step, in [0, 1].

    Returns:
        Shape [rows], float64.
    """
    # Numbers and not tensors of one row: the recursion has as many steps as the rollout.
    columns = zip(rewards.tolist(), next_values.tolist(), done.tolist(), group.tolist(), strict=True)
    found: list[float] = []
    later, environment = 0.0, None
    for reward, value, ends, number in reversed(list(columns)):
        later = reward + gamma * (value if ends or number != environment else later)
        environment = number
        found.append(later)
    return torch.tensor(found[::-1], dtype=torch.float64, device=rewards.device)


def response_gae(
    *,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_truncated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns of responses.

    The state after a step is the one before the next step that counts: what stands between the two (tokens of a tool)
    belongs to the environment.

    Args:
        rewards: shape [rows, steps].
        values: shape [rows, steps].
        mask: shape [rows, steps], bool, True = counts; may have holes.
        truncated: shape [rows], bool, True where the length limit cut the response.
        gamma: discount per step, in [0, 1].
        gae_lambda: trace decay per step, in [0, 1].
        bootstrap_truncated: False treats a cut response as ended (its answer is missing, so nothing is to come); True
            takes the value at its last step for what would have come.

    Returns:
        advantages and returns (advantages + values), each [rows, steps], 0.0 where the mask is False.
    """
    is_last = last_steps(mask=mask)
    next_values = _values_at_next_step(values, mask)
    terminated = is_last
    if bootstrap_truncated:
        terminated = is_last & ~truncated[:, None]
        next_values = torch.where(is_last, values, next_values)
    advantages = gae(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=terminated,
        done=is_last,
        mask=mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    return advantages, torch.where(mask, advantages + values, torch.zeros_like(values))


def last_steps(*, mask: Tensor) -> Tensor:
    """Return where each row's last counted step is.

    Args:
        mask: shape [rows, steps], bool; may have holes.

    Returns:
        Shape [rows, steps], bool, with one True per row that has a counted step.
    """
    counted = mask.cumsum(dim=1)
    # `mask &`, because the count stays at its maximum on everything after the last step.
    return mask & (counted == mask.sum(dim=1, keepdim=True))


def group_advantages(*, rewards: Tensor, group: Tensor, scale: bool, epsilon: float = 1e-4) -> Tensor:
    """Return each reward minus the mean of its group, divided by the group's standard deviation if `scale` is true.

    A_i = (r_i - mean_g) / (std_g + epsilon), std_g unbiased, 0 for a group of one.
    Source: Shao et al. 2024, arXiv 2402.03300, section 4.1.2.

    Args:
        rewards: shape [rows].
        group: shape [rows], int64, equal within a group.
        scale: whether to divide by the standard deviation.
        epsilon: added to it.

    Returns:
        Shape [rows].
    """
    # Sums and squares of such rewards leave the range of float32, and every advantage would be 0 or NaN.
    if rewards.numel() and float(rewards.abs().max()) > _LARGE and rewards.dtype != torch.float64:
        wide = group_advantages(rewards=rewards.double(), group=group, scale=scale, epsilon=epsilon)
        return wide.to(rewards.dtype)
    # Group numbers may have gaps; `members` counts from 0.
    _, members = group.unique(return_inverse=True)
    zeros = rewards.new_zeros(int(members.max()) + 1 if len(members) else 0)
    counts = zeros.index_add(0, members, torch.ones_like(rewards))
    means = zeros.index_add(0, members, rewards) / counts
    centred = rewards - means[members]
    if not scale:
        return centred
    # A group of one has the variance 0, not 0 / 0.
    variances = zeros.index_add(0, members, centred.square()) / (counts - 1).clamp(min=1)
    return centred / (variances.sqrt()[members] + epsilon)


def leave_one_out_advantages(*, rewards: Tensor, group: Tensor) -> Tensor:
    """Return each reward minus the mean of the other rewards of its group; 0 for a group of one.

    A_i = r_i - (sum_g r - r_i) / (n_g - 1)
    Source: RLOO, Ahmadian et al. 2024, arXiv 2402.14740.

    Args:
        rewards: shape [rows].
        group: shape [rows], int64, equal within a group.

    Returns:
        Shape [rows].
    """
    if rewards.numel() and float(rewards.abs().max()) > _LARGE and rewards.dtype != torch.float64:
        return leave_one_out_advantages(rewards=rewards.double(), group=group).to(rewards.dtype)
    _, members = group.unique(return_inverse=True)
    zeros = rewards.new_zeros(int(members.max()) + 1 if len(members) else 0)
    counts = zeros.index_add(0, members, torch.ones_like(rewards))[members]
    totals = zeros.index_add(0, members, rewards)[members]
    others = (totals - rewards) / (counts - 1).clamp(min=1)
    # Without another response there is nothing to compare with, and the reward itself is no advantage.
    return torch.where(counts > 1, rewards - others, torch.zeros_like(rewards))


def equal_rewards(*, rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many groups of two or more have rewards that are all equal, and how many such groups there are.

    A group baseline gives each response of such a group the advantage 0.

    Args:
        rewards: shape [rows].
        group: shape [rows], int64, equal within a group.

    Returns:
        Two counts of shape [], int64, which ranks can add.
    """
    _, counts, differ = _compared_groups(rewards, group)
    is_group = counts > 1
    return (is_group & ~differ).sum(), is_group.sum()


def rewards_differ(*, rewards: Tensor, group: Tensor) -> Tensor:
    """Return where the rewards of a row's group are not all equal; True for a group of one, which has no comparison.

    Args:
        rewards: shape [rows].
        group: shape [rows], int64, equal within a group.

    Returns:
        Shape [rows], bool, the same for all rows of a group.
    """
    members, counts, differ = _compared_groups(rewards, group)
    return (differ | (counts == 1))[members]


def _compared_groups(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the group of each row, counted from 0; the rows of each group; and whether its rewards differ."""
    _, members = group.unique(return_inverse=True)
    num_groups = int(members.max()) + 1 if len(members) else 0
    highest = rewards.new_full((num_groups,), -torch.inf).scatter_reduce(0, members, rewards, "amax")
    lowest = rewards.new_full((num_groups,), torch.inf).scatter_reduce(0, members, rewards, "amin")
    # Compared and not subtracted: a variance of equal numbers is not always 0 in floating point.
    return members, members.bincount(minlength=num_groups), lowest != highest


_LARGE = 1e15


def _values_at_next_step(values: Tensor, mask: Tensor) -> Tensor:
    """Return V at the next counted step of the row, 0.0 where there is none; shape [rows, steps]."""
    width = values.shape[1]
    columns = torch.arange(width, device=values.device).expand_as(mask)
    # from the right: the smallest column >= t that counts, then moved by one to be > t
    nearest = torch.where(mask, columns, width).flip(1).cummin(dim=1).values.flip(1)
    following = torch.cat([nearest[:, 1:], nearest.new_full((len(values), 1), width)], dim=1)
    padded = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)
    return padded.gather(1, following)
