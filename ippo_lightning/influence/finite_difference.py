"""Derivatives along a direction from forwards only: one at displaced parameters, or one on each side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.collectives import any_rank
from ippo_lightning.distributed.dtensor import inner_product, is_sharded, local, reshard, sharded_like
from ippo_lightning.errors import UserError
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.model_state import coarsest_dtype, trainable_parameters

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)

_ONE_SIDED = 0.3
_CENTRAL = 0.02
"""Factors of the relative step: `_ONE_SIDED` times the square root of the rounding unit eps, `_CENTRAL` times its cube
root. Both steps are about 1e-4 in float32.

The powers balance rounding (about eps / step) against curvature (about step, or step^2 for two sides). The factors are
measured on small Llamas, trained in full or with new or trained adapters: one side gives the signs of at least 99 % of
the scores, two sides an error below 3e-3 of the largest score.
"""


_TOLERANCE = 0.25
"""Greatest error of the known values, as a fraction of the differences that the scores are made of."""


def difference_scores(
    model: Model,
    function: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    blocks: Sequence[Block],
    *,
    known: Sequence[Tensor] | None,
    step: float | None = None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Differentiate a function of each batch along the direction, without a backward.

    (f(theta + e V) - f(theta)) / e if f(theta) is known, else (f(theta + e V) - f(theta - e V)) / (2 e)

    A clipped loss must not reach its kink within the step; at ratio 1 the kink is far away. The parameters move once
    for all batches, which needs memory for one more copy of them. Afterwards they are equal to the bit, also after an
    error.

    Args:
        model: its other parameters and buffers must not change; dropout off.
        function: called with the model and a batch; returns any shape, float32 or better.
        batches: in the order of the result.
        blocks: the direction's blocks.
        known: the function's values at the current parameters, one tensor per batch; None if unknown. Values that do
            not agree with a forward of the first batch are left alone, with a warning.
        step: e; None uses `choose_step`.
        dtype: dtype of the result.

    Returns:
        One tensor per batch, in the function's shape.

    Raises:
        UserError: `known` differs from the function's values in number or shape.
    """
    if known is not None and len(known) != len(batches):
        raise UserError(f"known_losses: got {len(known)} tensors for {len(batches)} batches; expected one per batch")
    if not blocks:
        return [torch.zeros_like(_values(model, function, batch), dtype=dtype) for batch in batches]
    _warn_of_half_precision(model)
    size = choose_step(model, blocks, one_sided=known is not None) if step is None else step
    # This side comes first: both ways need it, and its distance from the known values is the scale of their check.
    with displaced(model, blocks, size):
        ahead = [_values(model, function, batch) for batch in batches]
    if known is not None:
        _require_same_shapes(known, ahead)
    if known is not None and _are_current(model, function, batches, known, ahead):
        return [_quotient(after, before, size, dtype) for after, before in zip(ahead, known, strict=True)]
    if known is not None and step is None:  # the step of two sides is another one
        return difference_scores(model, function, batches, blocks, known=None, dtype=dtype)
    with displaced(model, blocks, -size):
        behind = [_values(model, function, batch) for batch in batches]
    return [_quotient(after, before, 2 * size, dtype) for after, before in zip(ahead, behind, strict=True)]


def _are_current(
    model: Model,
    function: Callable[[Model, Batch], Tensor],
    batches: Sequence[Batch],
    known: Sequence[Tensor],
    ahead: Sequence[Tensor],
) -> bool:
    """Return whether the known values are those at the current parameters, by a forward of the first batch; else warn.

    The step is tiny, so known values of another function or of other parameters would give scores of any sign.
    """
    if not batches:
        return True
    here = _values(model, function, batches[0]).double()
    error = (known[0].to(here) - here).norm()
    is_other = bool(error > _TOLERANCE * (ahead[0].to(here) - here).norm())
    if is_sharded(model):  # the two sides are passes that sharded ranks make together
        is_other = any_rank(is_other, device=here.device)
    if is_other:
        warnings.warn(
            "known_losses: they are not the losses at the current parameters, so each score takes two forwards",
            stacklevel=4,
        )
    return not is_other


def choose_step(model: nn.Module, blocks: Sequence[Block], *, one_sided: bool) -> float:
    """Choose the step along the direction that balances rounding against curvature.

    e = c |theta| / |V|, with c from the precision of the parameters.

    Args:
        model: theta are all its trainable parameters, also those on which the direction is zero.
        blocks: the direction's blocks.
        one_sided: whether the second value is the one at the current parameters.

    Returns:
        The step, > 0.
    """
    parameters = list(trainable_parameters(model).values())
    directions = [block.direction for block in blocks]
    parameter_squares, direction_squares = (inner_product(each, each) for each in (parameters, directions))
    # One step serves all parameters, so the coarsest dtype decides.
    rounding = max(torch.finfo(block.parameter.dtype).eps for block in blocks)
    relative = _ONE_SIDED * math.sqrt(rounding) if one_sided else _CENTRAL * rounding ** (1 / 3)
    # Parameters that are all zero have no scale; any positive step works.
    return relative * (math.sqrt(parameter_squares) or 1.0) / math.sqrt(direction_squares)


@contextmanager
def displaced(model: nn.Module, blocks: Sequence[Block], step: float) -> Iterator[None]:
    """Move parameters along the direction inside the block; afterwards they are equal to the bit.

    Args:
        model: the one that the blocks are of.
        blocks: the direction's blocks.
        step: how far; may be negative.
    """
    # Moving back by arithmetic would leave rounding errors, so the old values are kept and put back.
    before = [_kept(block.parameter) for block in blocks]
    try:
        # full parameters of an earlier forward would be used again, whatever the shards contain
        reshard(model)
        for block in blocks:
            _replace(block.parameter, _moved(block, step))
        yield
    finally:
        reshard(model)
        for block, values in zip(blocks, before, strict=True):
            _replace(block.parameter, values)


def _kept(parameter: Tensor) -> Tensor:
    """Return the values with which `_replace` restores a parameter."""
    # Only a shard is overwritten and needs a copy. An ordinary parameter gets another tensor as its data, and the old
    # one stays as it was.
    return local(parameter.detach()).clone() if isinstance(parameter, DTensor) else parameter.data


def _moved(block: Block, step: float) -> Tensor:
    values = local(block.parameter.detach())
    direction = local(sharded_like(block.direction, block.parameter))
    # A parameter in half precision is added in the direction's dtype and rounded once.
    return torch.add(values.to(dtype=direction.dtype), direction, alpha=step).to(dtype=values.dtype)


def _replace(parameter: Tensor, values: Tensor) -> None:
    if isinstance(parameter, DTensor):  # FSDP2 gathers from the memory of this rank's shard, so it must stay the same
        local(parameter.detach()).copy_(values)
    else:
        parameter.data = values


def _values(model: Model, function: Callable[[Model, Batch], Tensor], batch: Batch) -> Tensor:
    with torch.no_grad():
        return function(model, batch)


def _quotient(after: Tensor, before: Tensor, step: float, dtype: torch.dtype) -> Tensor:
    # The difference of two close numbers is exact: all rounding happened when the two were computed.
    return (after.to(dtype=torch.float64) - before.to(device=after.device, dtype=torch.float64)).div(step).to(dtype)


def _require_same_shapes(known: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for number, (before, after) in enumerate(zip(known, found, strict=True)):
        if before.shape != after.shape:
            shape, expected = tuple(before.shape), tuple(after.shape)
            raise UserError(f"known_losses: returned shape {shape} for batch {number}, expected {expected}")


def _warn_of_half_precision(model: nn.Module) -> None:
    coarsest = coarsest_dtype(model)
    if coarsest is not None:
        name = str(coarsest).removeprefix("torch.")
        warnings.warn(
            f"method: 'finite_difference' computes in {name}, and rounding hides most differences; use "
            "method='hooks', or float32",
            stacklevel=3,
        )
