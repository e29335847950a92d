"""The gradient of the target over groups of its batches: how ranks share the work, and how few copies are in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum, rank, world_size
from ippo_lightning.distributed.dtensor import full_tensor, is_sharded, mean_over_ranks
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.errors import UserError
from ippo_lightning.influence import add_weighted, target_gradient_groups
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.target_passes import cut, cut_to_fit, halved, measured, weight_of
from ippo_lightning.selection.targets import OwnTerms, TargetLoss


class TargetGradients(NamedTuple):
    """The gradient of the target at some parameters."""

    mean: dict[str, Tensor]
    """Parameter name to block, over all batches of the target."""
    groups: list[dict[str, Tensor]]
    """The same over each group of batches; empty if groups are not needed, or are not kept."""
    own: OwnTerms | None = None
    """What each row adds to the target, if that part is left out of its score."""
    metric: Mapping[str, Tensor] = {}
    """Parameter name to the factors by which `mean` is scaled, if there is `own`: 1, or those of Adam."""


AlongGroups = Callable[[Sequence[dict[str, Tensor]], int], None]
"""Called with the gradients of some groups and the number of all groups."""


class _Piece(NamedTuple):
    """What one pass takes."""

    batch: Any
    weight: float


class _Dealt(NamedTuple):
    """What each group consists of."""

    pieces: list[list[_Piece]]
    """Of each group, on this rank."""
    weights: list[float]
    """Of each group, over all ranks that take part in it."""
    of_all_ranks: bool
    """Whether a group's gradient is the mean of those of the ranks."""


def take_gradients(
    pl_module: Any,
    target: TargetLoss,
    *,
    num_groups: int,
    size: PassSize,
    along_groups: AlongGroups | None = None,
) -> TargetGradients:
    """Take the gradient of each group of batches; ranks share the work if there is enough of it.

    Args:
        pl_module: whose parameters are differentiated.
        target: the loss and its batches.
        num_groups: at most so many; fewer if there is too little to divide.
        size: tokens of a pass; it becomes smaller if memory runs out.
        along_groups: called with the groups, unless there is only one; these are then not in the result. With all at
            once if they take no more memory than the model, else with one after the other.
    """
    dealt = _dealt_out(pl_module, target, num_groups=num_groups, size=size)
    num_groups, total = len(dealt.weights), sum(dealt.weights)
    mean: dict[str, Tensor] = {}
    groups: list[dict[str, Tensor]] = []
    for pieces, weight in zip(dealt.pieces, dealt.weights, strict=True):
        direction = _gradient_of(pl_module, target, pieces, size)
        if is_sharded(pl_module):
            direction = _full_where_small(pl_module, direction, num_groups=num_groups)
        elif dealt.of_all_ranks:
            direction = _averaged(direction, fraction=sum(piece.weight for piece in pieces) / weight)
        add_weighted(mean, direction, weight / total)
        if num_groups > 1:
            groups.append(direction)
        if along_groups is not None and groups and not fit_at_once(pl_module, direction, num_groups=num_groups):
            along_groups(groups, num_groups)
            groups.clear()
        del direction  # otherwise the name keeps it in memory until the next one is taken
    if along_groups is not None and groups:
        along_groups(groups, num_groups)
        groups = []
    return TargetGradients(mean, groups, target.own)


def fit_at_once(pl_module: Any, direction: Mapping[str, Tensor], *, num_groups: int) -> bool:
    """Return whether so many gradients take no more memory than the model: those of adapters, as a rule.

    All of them at once need one pass over the rows that are scored; one after the other, each needs its own.

    Args:
        pl_module: whose gradients they are.
        direction: one of them.
        num_groups: their number.
    """
    # The sizes are those of the whole model, so all ranks decide alike.
    return num_groups * _bytes(direction.values()) <= _bytes(pl_module.parameters())


def _dealt_out(pl_module: Any, target: TargetLoss, *, num_groups: int, size: PassSize) -> _Dealt:
    ranks = world_size()
    # for each group a part per rank if ranks share the batches; else each rank has parts of its own for each group
    parts, weights = _divided(target, num_groups if target.is_of_rank else num_groups * ranks)
    is_shared = ranks > 1 and not target.is_of_rank and len(parts) >= num_groups * ranks
    if not is_shared and not target.is_of_rank:
        parts, weights = _divided(target, num_groups)
    num_groups = min(num_groups, _least(len(parts), like=pl_module) if target.is_of_rank else max(len(parts), 1))
    pieces: list[list[_Piece]] = [[] for _ in range(num_groups)]
    for number, part in enumerate(parts):
        # part b is of group b modulo num_groups; within each group, the ranks take turns
        if is_shared and number // num_groups % ranks != rank():
            continue
        # cut by tokens only after the groups are dealt out, so that a group's rows do not depend on the size of a pass
        pieces[number % num_groups] += [
            _Piece(piece, weights[number] if piece is part else weight_of(target, piece))
            for piece in cut_to_fit(pl_module, target, part, size)
        ]
    sums = [sum((piece.weight for piece in group), 0.0) for group in pieces]
    of_all_ranks = is_shared or (target.is_of_rank and ranks > 1)
    device = next(pl_module.parameters()).device
    # without either, each rank goes through all batches by itself, and the results are equal
    if is_sharded(pl_module):
        if not _all_have(sum(map(len, pieces)), device=device):
            raise UserError(
                "InfluenceFilter.target: a rank has no row of it, and the ranks of a sharded model go together"
            )
        # the backward divides by the number of ranks
        sums = mean_over_ranks(sums, device=device)
    elif of_all_ranks:
        sums = all_reduce_sum(torch.tensor(sums, dtype=torch.float64, device=device)).tolist()
        if min(sums) <= 0:
            raise UserError("InfluenceFilter.target: no row of any rank is in it; expected at least one")
    return _Dealt(pieces, sums, of_all_ranks)


def _gradient_of(pl_module: Any, target: TargetLoss, pieces: Sequence[_Piece], size: PassSize) -> dict[str, Tensor]:
    """Return the gradient of one group."""
    passes = list(in_step(pieces, module=pl_module))
    if target.is_of_rank and world_size() > 1 and not passes:
        # no row of this rank is in the target, and the average needs nothing of it
        return _zeros_like(pl_module)
    taken = target_gradient_groups(
        pl_module,
        target.loss,
        measured(pl_module, target, [piece.batch for piece, _ in passes], size),
        num_groups=1,
        # a pass that a rank only repeats for the others counts nothing
        weights=[piece.weight if is_mine else 0.0 for piece, is_mine in passes],
        split=partial(halved, pl_module, target, size),
    )
    return taken.directions[0]


def _all_have(count: int, *, device: torch.device) -> bool:
    """Return whether each rank has one; all ranks call this together."""
    return all_reduce_max(-count, device=device) < 0


def _zeros_like(module: Any) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(
            parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False
        )
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _least(count: int, *, like: Any) -> int:
    """Return the smallest count of any rank, at least 1: each rank needs a batch for each group."""
    device = next(like.parameters()).device
    return max(-all_reduce_max(-count, device=device), 1)


def _full_where_small(pl_module: Any, direction: Mapping[str, Tensor], *, num_groups: int) -> dict[str, Tensor]:
    """Gather gradients that take no more memory than a rank's part of the model: those of adapters, as a rule.

    Full tensors need not be gathered again for each module of each pass. Larger ones stay sharded like the parameters.
    """
    is_small = num_groups * _bytes(direction.values()) <= _bytes(pl_module.parameters()) / world_size()
    return {name: full_tensor(block) if is_small else block for name, block in direction.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all shards of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _averaged(direction: Mapping[str, Tensor], *, fraction: float) -> dict[str, Tensor]:
    """Average a group's gradient over the ranks, by the weight of what each has seen."""
    # each rank's gradient is a mean already, so it enters the sum with its fraction of the weight
    return {name: all_reduce_sum(block * fraction) for name, block in direction.items()}


def _divided(target: TargetLoss, num_groups: int) -> tuple[list[Any], list[float]]:
    """Cut batches so that there is one for each group; return them with what each counts."""
    pieces = math.ceil(num_groups / max(len(target.batches), 1))
    parts = [part for batch in target.batches for part in cut(batch, pieces)]
    return parts, [weight_of(target, part) for part in parts]
