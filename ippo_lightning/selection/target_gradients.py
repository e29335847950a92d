"""The gradient of the target: when it is taken again, how ranks share the work, and how it is scaled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum, rank, world_size
from ippo_lightning.distributed.dtensor import full_tensor, is_sharded
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.errors import UserError
from ippo_lightning.influence import (
    TargetGroups,
    mean_direction,
    precondition,
    select_blocks,
    target_gradient_groups,
)
from ippo_lightning.records.digests import batch_digest
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.module_interface import optimizer_of
from ippo_lightning.selection.own_terms import require_one_rollout
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_passes import cut, cut_to_fit, halved, measured, weight_of
from ippo_lightning.selection.targets import OwnTerms, TargetLoss

_EACH_ROW = 2**31
"""So many pieces that each has one row."""
_MODULUS = 2**56
"""A checkpoint contains 64 bits at most."""


class TargetGradients(NamedTuple):
    """The gradient of the target at some parameters."""

    mean: dict[str, Tensor]
    """Parameter name to block, over all batches of the target."""
    groups: list[dict[str, Tensor]]
    """The same over each group of batches; empty if groups are not needed."""
    own: OwnTerms | None = None
    """What each row adds to the target, if that part is left out of its score."""
    metric: Mapping[str, Tensor] = {}
    """Parameter name to the factors by which `mean` is scaled, if there is `own`: 1, or those of Adam."""


class TargetGradientCache:
    """Takes the gradient of the target if it is due, and keeps it for the iterations in between.

    Args:
        settings: see `ScoringSettings`.
        needs_groups: whether each iteration needs the groups.
    """

    def __init__(self, settings: ScoringSettings, *, needs_groups: bool = False) -> None:
        self.settings = settings
        self.needs_groups = needs_groups
        self.raw: TargetGradients | None = None
        """As last taken, before any scaling."""
        self._prepared: TargetGradients | None = None
        self.size: PassSize | None = None
        """Tokens of a pass; None before the first gradient."""
        self._batches = 0
        """Digest of the rows of `raw`; 0 if it is not kept, or each rank has rows of its own, which change."""
        self._loaded: Mapping[str, Any] = {}
        """What a checkpoint knows, until the first call: only then are module and target at hand."""

    def take(
        self, pl_module: Any, target: Callable[[], TargetLoss], *, iteration: int, part: int | None = None
    ) -> TargetGradients:
        """Return the gradients to score along.

        Args:
            pl_module: whose parameters are differentiated.
            target: returns the loss and its batches; called if the gradient is due or a checkpoint has one.
            iteration: counted from 0.
            part: number of the micro-batch in its optimizer step, None without gradient accumulation. The parameters
                are the same for all micro-batches of a step, and so is the gradient.
        """
        if part and self._prepared is not None:
            return self._prepared
        if "mean" in self._loaded:
            self._continue(pl_module, target)
        settings = self.settings
        wants_groups = self.needs_groups or _is_due(iteration, settings.health_every_n_iterations)
        is_stale = self.raw is None or _is_due(iteration, settings.refresh_every_n_iterations)
        # groups cannot be recovered from their mean, so a gradient without them is taken again
        if is_stale or (wants_groups and not (self.raw and self.raw.groups)):
            chosen = target()
            require_one_rollout(chosen, pl_module, part=part)
            if self.size is None:
                self.size = self._size_for(chosen)
            num_groups = settings.health_groups if wants_groups else 1
            self.raw = take_gradients(pl_module, chosen, num_groups=num_groups, size=self.size)
            self._batches = _digest_of(chosen) if settings.refresh_every_n_iterations > 1 else 0
        assert self.raw is not None, "taken just now"
        # scaled in each iteration, also if the gradient is kept: Adam's state changes with each step
        groups = [self._scaled(pl_module, entry) for entry in self.raw.groups] if wants_groups else []
        metric = {} if self.raw.own is None else self._scaled(pl_module, _ones_like(self.raw.mean))
        self._prepared = TargetGradients(self._scaled(pl_module, self.raw.mean), groups, self.raw.own, metric)
        return self._prepared

    def release(self) -> None:
        """Free what no later iteration reads; each gradient is as large as the trainable parameters."""
        self._prepared = None
        if self.settings.refresh_every_n_iterations == 1:  # the next iteration takes it again
            self.raw = None

    def state_dict(self) -> dict[str, Any]:
        """Return the size of passes, and the gradient if later iterations will use it again."""
        if self._loaded:
            return dict(self._loaded)
        sizes = {} if self.size is None else {"size": self.size.state_dict()}
        if self.raw is None or self.settings.refresh_every_n_iterations == 1:
            return sizes
        mean, *groups = (
            {name: full_tensor(block) for name, block in entry.items()} for entry in [self.raw.mean, *self.raw.groups]
        )
        return {"mean": mean, "groups": groups, "batches": self._batches, **sizes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.raw, self.size, self._prepared = None, None, None
        self._loaded = dict(state)

    def _size_for(self, target: TargetLoss) -> PassSize:
        """Return the size of passes: that of the checkpoint, unless another one has been set since."""
        size = PassSize(target.max_tokens, field="InfluenceFilter.target.max_tokens")
        if "size" in self._loaded:
            size.load_state_dict(self._loaded["size"])
        self._loaded = {}
        return size

    def _continue(self, pl_module: Any, target: Callable[[], TargetLoss]) -> None:
        """Go on with the gradient of a checkpoint, unless the target has changed since."""
        state = self._loaded
        # An unbroken run does not read the demonstrations here, and a loader may draw their order at random.
        with torch.random.fork_rng(devices=[]):
            found = target()
        self.size = self._size_for(found)
        mine = _digest_of(found)
        # a checkpoint of an earlier version does not tell
        if state.get("batches", mine) != mine:
            warnings.warn(
                "InfluenceFilter: the demonstrations are not those of the checkpoint; their gradient is taken again",
                stacklevel=6,
            )
            return
        device = next(pl_module.parameters()).device
        mean, *groups = (
            # a checkpoint is read to the CPU
            {name: block.to(device) for name, block in entry.items()}
            for entry in [state["mean"], *state["groups"]]
        )
        self.raw, self._batches = TargetGradients(mean, groups), mine

    def _scaled(self, pl_module: Any, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = dict(direction)
        # selected first, so that blocks that do not count are neither scaled nor part of the usual scale
        if self.settings.include is not None or self.settings.exclude:
            chosen = select_blocks(chosen, include=self.settings.include, exclude=self.settings.exclude)
        if self.settings.adam_aware:
            chosen = precondition(chosen, model=pl_module, optimizer=optimizer_of(pl_module))
        return chosen


class _Piece(NamedTuple):
    """What one pass takes."""

    batch: Any
    weight: float
    group: int


def take_gradients(pl_module: Any, target: TargetLoss, *, num_groups: int, size: PassSize) -> TargetGradients:
    """Take the gradient of each group of batches; ranks share the work if there is enough of it.

    Args:
        pl_module: whose parameters are differentiated.
        target: the loss and its batches.
        num_groups: at most so many; fewer if there is too little to divide.
        size: tokens of a pass; it becomes smaller if memory runs out.
    """
    ranks = world_size()
    # for each group a part per rank if ranks share the batches; else each rank has parts of its own for each group
    parts, weights = _divided(target, num_groups if target.is_of_rank else num_groups * ranks)
    is_shared = ranks > 1 and not target.is_of_rank and len(parts) >= num_groups * ranks
    if not is_shared and not target.is_of_rank:
        parts, weights = _divided(target, num_groups)
    num_groups = min(num_groups, _least(len(parts), like=pl_module) if target.is_of_rank else max(len(parts), 1))
    # part b is of group b modulo num_groups; within each group, the ranks take turns
    mine = [number for number in range(len(parts)) if not is_shared or number // num_groups % ranks == rank()]
    together = is_sharded(pl_module)
    # cut by tokens only after the groups are dealt out, so that a group's rows do not depend on the size of a pass
    pieces = [
        _Piece(piece, weights[number] if piece is parts[number] else weight_of(target, piece), number % num_groups)
        for number in mine
        for piece in cut_to_fit(pl_module, target, parts[number], size)
    ]
    if together and not _all_have(pieces, module=pl_module):
        raise UserError("InfluenceFilter.target: a rank has no row of it, and the ranks of a sharded model go together")
    passes = list(in_step(pieces, module=pl_module))
    if target.is_of_rank and ranks > 1 and not passes:
        # no row of this rank is in the target, and the average needs nothing of it
        taken = TargetGroups([_zeros_like(pl_module)], [0.0])
    else:
        taken = target_gradient_groups(
            pl_module,
            target.loss,
            measured(pl_module, target, [piece.batch for piece, _ in passes], size),
            num_groups=num_groups,
            # a pass that a rank only repeats for the others counts nothing
            weights=[piece.weight if is_mine else 0.0 for piece, is_mine in passes],
            group_of=[piece.group for piece, _ in passes],
            split=partial(halved, pl_module, target, size),
        )
    if together:
        taken = taken._replace(directions=_full_where_small(pl_module, taken.directions))
    elif is_shared or (target.is_of_rank and ranks > 1):
        # without either, each rank has gone through all batches by itself, and the results are equal
        taken = _averaged(taken)
    mean = mean_direction(taken.directions, weights=taken.weights)
    return TargetGradients(mean, taken.directions if num_groups > 1 else [], target.own)


def _digest_of(target: TargetLoss) -> int:
    """Return a number for the rows of a target, in any order; 0 if each rank has rows of its own, which change."""
    if target.is_of_rank:
        return 0
    rows = [row for batch in target.batches for row in cut(batch, _EACH_ROW)]
    return sum(map(batch_digest, rows)) % _MODULUS


def _all_have(pieces: Sequence[Any], *, module: Any) -> bool:
    """Return whether each rank has a piece; all ranks call this together."""
    return all_reduce_max(-len(pieces), device=next(module.parameters()).device) < 0


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


def _full_where_small(pl_module: Any, directions: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Gather gradients that take no more memory than a rank's part of the model: those of adapters, as a rule.

    Full tensors need not be gathered again for each module of each pass. Larger ones stay sharded like the parameters.
    """
    held = sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters()) / world_size()
    size = sum(block.numel() * block.element_size() for entry in directions for block in entry.values())
    return [
        {name: full_tensor(block) if size <= held else block for name, block in entry.items()} for entry in directions
    ]


def _averaged(taken: TargetGroups) -> TargetGroups:
    """Average each group's gradient over the ranks, by the weight of what each has seen."""
    device = next(iter(taken.directions[0].values())).device
    totals = all_reduce_sum(torch.tensor(taken.weights, dtype=torch.float64, device=device)).tolist()
    if min(totals) <= 0:
        raise UserError("InfluenceFilter.target: no row of any rank is in it; expected at least one")
    # each rank's gradient is a mean already, so it enters the sum with its fraction of the weight
    directions = [
        {name: all_reduce_sum(block * (weight / total)) for name, block in direction.items()}
        for direction, weight, total in zip(taken.directions, taken.weights, totals, strict=True)
    ]
    return TargetGroups(directions, totals)


def _divided(target: TargetLoss, num_groups: int) -> tuple[list[Any], list[float]]:
    """Cut batches so that there is one for each group; return them with what each counts."""
    pieces = math.ceil(num_groups / max(len(target.batches), 1))
    parts = [part for batch in target.batches for part in cut(batch, pieces)]
    return parts, [weight_of(target, part) for part in parts]


def _ones_like(direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # expanded: a single number in memory for each parameter
    return {name: block.new_ones(()).expand(block.shape) for name, block in direction.items()}


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
