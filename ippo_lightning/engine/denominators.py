"""What divides the losses of an optimizer step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.engine.load_balancing import Work
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.records import Episodes


class Divisors(NamedTuple):
    """What divides the losses of each optimizer step, besides the number of ranks."""

    shrink: float
    """What the policy denominator is multiplied by."""
    counts: tuple[float, float] | None
    """Policy and value denominators that are the same in each step; None for the size of the step's own rows."""


def counts_per_step(work: Work, settings: UpdateSettings, num_minibatches: int) -> tuple[float, float] | None:
    """Return the mean denominators of a step, if each token of the iteration is to count the same; else None.

    Args:
        work: of this rank.
        settings: of the update.
        num_minibatches: steps of an epoch.
    """
    if settings.loss_reduction != "rollout_token_mean" or not num_minibatches:
        return None
    sizes = work.episodes.lengths.double()
    policy_count, value_count = counted(sizes, work.weights, torch.ones_like(work.weights))
    return policy_count / num_minibatches, value_count / num_minibatches


def counted(sizes: Tensor, weights: Tensor, value_weights: Tensor) -> tuple[float, float]:
    """Return the size of the rows of all ranks whose policy loss counts, and of those whose value loss does.

    Args:
        sizes: of this rank's rows, shape [rows].
        weights: of their policy losses, shape [rows].
        value_weights: of their value losses, shape [rows].
    """
    counts = torch.stack([weights, value_weights]) > 0
    policy_count, value_count = all_reduce_sum((sizes * counts).sum(dim=1)).tolist()
    return policy_count, value_count


def row_sizes(episodes: Episodes, rows: Tensor, settings: UpdateSettings) -> Tensor:
    """Return how much each row counts in the denominator: one, or its steps; shape [chosen].

    Args:
        episodes: of this rank.
        rows: positions, shape [chosen], int64.
        settings: of the update.
    """
    if settings.loss_reduction in ("episode_mean", "fixed_length"):
        return torch.ones(len(rows), device=rows.device)
    return episodes.lengths[rows]
