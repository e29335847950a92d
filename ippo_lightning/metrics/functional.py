"""The metrics of sampled reasoning as pure functions of counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from ippo_lightning.errors import UserError


def pass_at_k(*, num_samples: int, num_correct: int, k: int) -> float:
    """Return the probability that one of k samples, drawn without replacement, is right.

    1 - C(n - c, k) / C(n, k). Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.

    Args:
        num_samples: n, at least k.
        num_correct: c, in [0, n].
        k: at least 1.

    Raises:
        UserError: fewer samples than k.
    """
    if num_samples < k:
        raise UserError(f"pass_at_k: k = {k} with {num_samples} samples per prompt; sample at least k")
    # Integers of any size: with products of floats, hundreds of samples would overflow or round.
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_vote(*, answers: Sequence[str | None], reference: str) -> float:
    """Return the probability that the most frequent answer is the right one, with ties broken at random.

    Responses without an answer do not vote.

    Args:
        answers: of all samples to one prompt, in canonical form.
        reference: the right answer in the same form.

    Returns:
        In [0, 1]; 0.0 without votes.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    # The expectation over ties and not a draw, so that an evaluation gives the same number again.
    winners = [answer for answer, count in votes.items() if count == most]
    return float(reference in winners) / len(winners)


def fraction(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, NaN for 0 / 0.

    Args:
        part: a sum or a count, shape [].
        whole: what it is a part of, shape [].
    """
    return part / whole
