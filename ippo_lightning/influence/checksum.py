"""Compare the weighted sum of a micro-batch's scores with the same sum from plain autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.dtensor import mean_over_ranks
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.model_state import averaged_gradients
from ippo_lightning.influence.per_episode import contracted
from ippo_lightning.influence.refusals import ChecksumError

TOLERANCE = 1e-3
"""Allowed difference as a fraction of sum |w_i s_i| if everything is computed in float32 or better."""
HALF_TOLERANCE = 2e-2
"""The same if bfloat16, float16 or TF32 takes part; rounding alone reaches about 1e-2."""


def verify_checksum(
    losses: Tensor,
    scores: Tensor,
    directions: Sequence[Sequence[Block]],
    *,
    is_coarse: bool,
    parts: Mapping[str, Tensor] | None = None,
) -> None:
    """Check scores against the gradient of a weighted sum of the losses.

    |sum_i w_i s_i - <grad sum_i w_i loss_i, V>| <= tolerance * sum_i |w_i s_i| + rounding

    The weights w_i lie in [0.5, 1.5] and differ, so the check also finds a contribution that is credited to the wrong
    episode. It needs a backward of its own: in the backward that made the scores, wrongly credited contributions still
    add up. Rounding is 4 eps * sqrt(sum of squared products); it matters only if the scores themselves almost vanish.
    In half precision, |s_i| is replaced by the sum over parameters of |part of s_i|: each part is rounded by itself,
    and the parts of a large model nearly cancel.

    Args:
        losses: one loss per episode, shape [rows], with a graph to all parameters of the blocks.
        scores: shape [directions, rows]; each direction is checked.
        directions: the blocks of each direction.
        is_coarse: whether half precision or TF32 took part.
        parts: parameter name to its part of the scores, shape [directions, rows]; None if unknown.

    Raises:
        ChecksumError: the two sums differ by more than that.
    """
    weights = _spread_weights(losses)
    # By name: several directions share parameters, and one backward gives the gradient for all directions.
    parameters = {block.name: block.parameter for blocks in directions for block in blocks}
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if losses.requires_grad and parameters:
        found = averaged_gradients(losses, list(parameters.values()), weights, keep_graph=True)
    by_name = dict(zip(parameters, found, strict=True))
    sizes = scores.abs()
    if is_coarse and parts:
        sizes = torch.stack([part.abs() for part in parts.values()]).sum(dim=0)
    for row, size, blocks in zip(scores, sizes, directions, strict=True):
        expected, rounding = contracted(by_name, blocks, like=row)
        wide = weights.to(dtype=row.dtype)
        sums = torch.stack([(wide * row).sum(), (wide * size).sum()]).double()
        # The gradient of sharded parameters is the mean over ranks, so the scores' sums are averaged, too.
        if any(isinstance(block.parameter, DTensor) for block in blocks):
            sums = sums.new_tensor(mean_over_ranks(sums.tolist(), device=sums.device))
        _require_equal(sums, expected, rounding, num_scores=len(row), is_coarse=is_coarse)


def _spread_weights(losses: Tensor) -> Tensor:
    # Multiples of the golden ratio's fractional part never repeat and share no period with the data, so no two errors
    # cancel because their weights are equal. And they are the same in each run, unlike random weights.
    steps = torch.arange(1, len(losses) + 1, device=losses.device, dtype=torch.float64)
    # Rounded to the losses' dtype here, so that both sums use the same weights to the last bit.
    return ((steps * 0.6180339887498949) % 1.0 + 0.5).to(dtype=losses.dtype)


def _require_equal(sums: Tensor, expected: Tensor, rounding: Tensor, *, num_scores: int, is_coarse: bool) -> None:
    total, size = sums.tolist()
    tolerance = HALF_TOLERANCE if is_coarse else TOLERANCE
    eps = torch.finfo(torch.bfloat16 if is_coarse else torch.float32).eps
    allowed = tolerance * size + 4 * eps * float(rounding)
    difference = abs(total - float(expected))
    if not difference <= allowed:  # not `difference > allowed`: a NaN must fail
        raise ChecksumError(
            f"the weighted sum of the scores of {num_scores} episodes is {total:.6g}, but plain autograd gives "
            f"{float(expected):.6g}; the difference is {difference:.3g}, allowed is {allowed:.3g}. Likely causes: a "
            "module's parameters are used without calling the module (fused kernels, compiled modules, functional "
            "calls); an input is broadcast over the episodes; one episode's loss depends on another's tokens; the "
            "model draws random numbers. method='per_episode' is slow and always correct"
        )
