"""How much the coming update lowers the loss of a target: a prediction with its standard error, without selection bias.

Rows that are kept because their scores are positive have a positive mean score, also where the scores are noise. So
the demonstrations are split into two halves: one half chooses, the other measures, and then the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, variance
from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.maths.shapes import RowFloats


class GainEstimate(NamedTuple):
    """The predicted decrease of the target's loss per unit of step size."""

    mean: float
    of_demonstrations: float
    """Standard error from the spread over demonstrations, >= 0."""
    of_rows: float
    """Standard error from the spread over rows, beyond what it shares with that over demonstrations, >= 0."""
    degrees_of_freedom: float
    """Of Student's t, for an interval."""
    along_groups: tuple[float, ...] = ()
    """The gain along each group of demonstrations, as the half without it has chosen; even groups are one half."""

    @property
    def standard_error(self) -> float:
        """From both sources; 0 if nothing varies, for example because nothing is kept."""
        return math.hypot(self.of_demonstrations, self.of_rows)

    def times(self, size: float) -> GainEstimate:
        """Return the estimate for a step of another size.

        Args:
            size: >= 0, for example the learning rate times the number of optimizer steps.
        """
        return GainEstimate(
            mean=size * self.mean,
            of_demonstrations=size * self.of_demonstrations,
            of_rows=size * self.of_rows,
            degrees_of_freedom=self.degrees_of_freedom,
            along_groups=tuple(size * gain for gain in self.along_groups),
        )


def pooled_gain(estimates: Sequence[GainEstimate]) -> GainEstimate:
    """Return what estimates from several rollouts along the same demonstrations say together.

    The scale of scores may change a thousandfold from one rollout to the next, and a plain mean would be that of a few
    rollouts. So each estimate counts in units of its own standard error (Stouffer's method), and their mean is turned
    back into the unit of the gain by the median standard error. The rows of two rollouts are independent, so their part
    of the error falls with the number of rollouts. The demonstrations are the same. How far their part falls is seen
    from the groups of demonstrations: the gain along each is averaged first, and the spread is that of these averages.
    A rollout of which nothing is kept has no gain and no error; it counts as 0.

    Args:
        estimates: at least one, all along the same groups.
    """
    count = len(estimates)
    units = [one.times(1 / one.standard_error) for one in estimates if one.standard_error > 0]
    along_groups = list(zip(*(one.along_groups for one in units), strict=True))
    scale = median(one.standard_error for one in estimates if one.standard_error > 0) if units else 0.0
    return GainEstimate(
        mean=scale * sum(one.mean for one in units) / count,
        of_demonstrations=scale * _of_demonstrations([sum(gains) / count for gains in along_groups]),
        of_rows=scale * math.hypot(*(one.of_rows for one in units)) / count,
        degrees_of_freedom=sum(one.degrees_of_freedom for one in estimates) / count,
        along_groups=tuple(scale * sum(gains) / count for gains in along_groups),
    )


def _of_demonstrations(along_groups: Sequence[float]) -> float:
    """Return the standard error of the mean of both halves' gains; their correlation is taken as 1."""
    halves = [along_groups[half::2] for half in (0, 1)]
    return sum(math.sqrt(variance(half) / len(half)) for half in halves if len(half) > 1) / 2


def cross_fitted_gain(*, group_scores: Tensor, weights: Tensor, clusters: Tensor) -> GainEstimate:
    """Estimate the weighted mean score of the rows along demonstrations that did not choose the weights.

    Even groups of demonstrations are one half, odd groups the other. With half A choosing and half B measuring,

        gain(A, B) = sum_i w_i(A) s_i(B) / sum_i w_i(A),   s_i(B) = mean of the scores along the groups of B.

    The estimate is the mean of gain(A, B) and gain(B, A). Given A and the rows, its expectation over demonstrations is
    the score along the gradient of their expected loss, so it is 0 where that gradient is 0.

    The variance of gain(A, B) has two sources, rows and demonstrations: it is that of a mean over clusters of rows,
    plus that of a mean over groups, minus that over pairs of both, which the two others both contain (Cameron, Gelbach
    and Miller 2011, two-way clustering). Both gains read all demonstrations and all rows, so their correlation is
    unknown; each standard error of their mean is at most the mean of both, which is the result. The degrees of freedom
    are Satterthwaite's (1946).

    Args:
        group_scores: scores of the rows along the gradient of each group of demonstrations, shape [groups, rows], at
            least 4 groups of about the same size. Group g belongs to half g modulo 2.
        weights: weights of the rows as each half alone decides them, shape [2, rows], >= 0.
        clusters: rows with the same number depend on each other, such as responses to one prompt; shape [rows], int64.

    Raises:
        UserError: fewer than 4 groups, so that a half has no spread.
    """
    if len(group_scores) < 4:
        raise UserError(f"group_scores: {len(group_scores)} groups of demonstrations; expected at least 4")
    scores, factors = group_scores.double(), weights.double()
    gains = [_half_gain(scores[1 - half :: 2], factors[half], clusters) for half in (0, 1)]
    along_groups = [0.0] * len(scores)
    for half, gain in enumerate(gains):
        along_groups[1 - half :: 2] = gain.along_groups
    return GainEstimate(
        mean=sum(gain.mean for gain in gains) / 2,
        of_demonstrations=sum(gain.of_demonstrations for gain in gains) / 2,
        of_rows=sum(gain.of_rows for gain in gains) / 2,
        degrees_of_freedom=sum(gain.degrees_of_freedom for gain in gains),
        along_groups=tuple(along_groups),
    )


def _half_gain(scores: Tensor, weights: RowFloats, clusters: Tensor) -> GainEstimate:
    """Return the gain of weights that these scores have not chosen.

    Args:
        scores: along each group of the measuring half, shape [groups, rows].
        weights: as the other half decides them, shape [rows].
        clusters: shape [rows], int64.
    """
    num_groups, total = len(scores), weights.sum()
    _, members, counts = clusters.unique(return_inverse=True, return_counts=True)
    if not bool(total > 0):
        return GainEstimate(0.0, 0.0, 0.0, num_groups - 1.0, (0.0,) * num_groups)
    gains = scores @ weights / total
    mean = gains.mean()
    # What each cluster and group adds to the gain, linearised: the gain is a ratio of two sums over rows.
    parts = scores.new_zeros(num_groups, len(counts)).index_add(1, members, weights * (scores - mean))
    parts /= total * num_groups
    of_groups = gains.var() / num_groups
    of_rows = parts.sum(dim=0).square().sum() * _correction(len(counts))
    of_pairs = parts.square().sum()
    # Together never below either source alone: a difference of estimates may be, and even below 0.
    beyond = torch.maximum(of_rows - torch.minimum(of_pairs, of_groups), torch.zeros_like(of_rows))
    spread = of_groups.square() / (num_groups - 1) + of_rows.square() / max(len(counts) - 1, 1)
    freedom = float((of_groups + beyond).square() / spread) if bool(spread > 0) else num_groups - 1.0
    along_groups = tuple(gains.tolist())
    return GainEstimate(float(mean), float(of_groups.sqrt()), float(beyond.sqrt()), max(freedom, 1.0), along_groups)


def _correction(count: int) -> float:
    return count / max(count - 1, 1)
