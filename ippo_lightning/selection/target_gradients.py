"""The gradient of the target: when it is taken again, and how it is scaled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import full_tensor
from ippo_lightning.influence import precondition, select_blocks
from ippo_lightning.records.digests import batch_digest
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.grouped_gradients import AlongGroups, TargetGradients, fit_at_once, take_gradients
from ippo_lightning.selection.module_interface import adam_of
from ippo_lightning.selection.own_terms import require_one_rollout
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_passes import cut
from ippo_lightning.selection.targets import OwnTerms, TargetLoss

_EACH_ROW = 2**31
"""So many pieces that each has one row."""
_MODULUS = 2**56
"""A checkpoint contains 64 bits at most."""


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
        """As last taken, before any scaling; None if no later iteration or micro-batch reads it."""
        self._prepared: TargetGradients | None = None
        self.size: PassSize | None = None
        """Tokens of a pass; None before the first gradient."""
        self.num_sampled: int | None = None
        """See `TargetLoss.num_sampled`, of the newest call; None if it took no gradient."""
        self._batches = 0
        """Digest of the rows of `raw`; 0 if it is not kept, or each rank has rows of its own, which change."""
        self._loaded: Mapping[str, Any] = {}
        """What a checkpoint knows, until the first call: only then are module and target at hand."""

    def take(
        self,
        pl_module: Any,
        target: Callable[[], TargetLoss],
        *,
        iteration: int,
        part: int | None = None,
        along_groups: AlongGroups = lambda directions, num_groups: None,
    ) -> TargetGradients:
        """Return the gradients to score along; their groups only if each iteration needs them.

        Args:
            pl_module: whose parameters are differentiated.
            target: returns the loss and its batches; called if the gradient is due or a checkpoint has one.
            iteration: counted from 0.
            part: number of the micro-batch in its optimizer step, None without gradient accumulation. The parameters
                are the same for all micro-batches of a step, and so is the gradient.
            along_groups: called with the scaled gradients of groups if they are due: with all at once if they take no
                more memory than the model, else with one after the other.
        """
        self.num_sampled = None
        if "mean" in self._loaded and not (part and self._prepared is not None):
            self._continue(pl_module, target)
        settings = self.settings
        wants_groups = self.needs_groups or _is_due(iteration, settings.health_every_n_iterations)
        if self.needs_groups or part is not None or settings.refresh_every_n_iterations > 1:
            if not (part and self._prepared is not None):
                # groups cannot be recovered from their mean, so a gradient without them is taken again
                is_stale = self.raw is None or _is_due(iteration, settings.refresh_every_n_iterations)
                if is_stale or (wants_groups and not (self.raw and self.raw.groups)):
                    self.raw = self._taken(pl_module, target, part=part, with_groups=wants_groups)
                self._prepared = None
            return self._along_kept(pl_module, along_groups if wants_groups else None)

        # No later iteration reads them: each is scaled in its place, and a group is gone before the next one is taken.
        def along(groups: Sequence[dict[str, Tensor]], num_groups: int) -> None:
            along_groups([self._scaled(pl_module, entry, in_place=True) for entry in groups], num_groups)

        taken = self._taken(pl_module, target, part=part, with_groups=wants_groups, along_groups=along)
        mean = self._scaled(pl_module, taken.mean, in_place=True)
        return TargetGradients(mean, [], taken.own, self._metric(pl_module, mean, taken.own))

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

    def _taken(
        self,
        pl_module: Any,
        target: Callable[[], TargetLoss],
        *,
        part: int | None,
        with_groups: bool,
        along_groups: AlongGroups | None = None,
    ) -> TargetGradients:
        chosen = target()
        require_one_rollout(chosen, pl_module, part=part)
        self.num_sampled = chosen.num_sampled
        if self.size is None:
            self.size = self._size_for(chosen)
        self._batches = _digest_of(chosen) if self.settings.refresh_every_n_iterations > 1 else 0
        num_groups = self.settings.health_groups if with_groups else 1
        return take_gradients(pl_module, chosen, num_groups=num_groups, size=self.size, along_groups=along_groups)

    def _along_kept(self, pl_module: Any, along_groups: AlongGroups | None) -> TargetGradients:
        """Go through the groups of the kept gradient, and return it scaled."""
        assert self.raw is not None, "taken by the caller"
        # scaled in each iteration, also if the gradient is kept: Adam's state changes with each step
        found, kept = [], self.raw.groups
        if along_groups is not None and kept:
            if self.needs_groups or fit_at_once(pl_module, kept[0], num_groups=len(kept)):
                found = [self._scaled(pl_module, entry) for entry in kept]
                along_groups(found, len(kept))
            else:
                for entry in kept:
                    along_groups([self._scaled(pl_module, entry)], len(kept))
        if self._prepared is None:
            mean = self._scaled(pl_module, self.raw.mean)
            own = self.raw.own
            metric = self._metric(pl_module, mean, own)
            self._prepared = TargetGradients(mean, found if self.needs_groups else [], own, metric)
        return self._prepared

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

    def _metric(self, pl_module: Any, like: Mapping[str, Tensor], own: OwnTerms | None) -> dict[str, Tensor]:
        """Return the factors by which a gradient was scaled; none if no row's own part is left out.

        Args:
            pl_module: whose gradient it is.
            like: the scaled gradient, of the selected blocks.
            own: of the target.
        """
        if own is None:
            return {}
        # expanded: a single number in memory for each parameter
        ones = {name: block.new_ones(()).expand(block.shape) for name, block in like.items()}
        return self._preconditioned(pl_module, ones)

    def _scaled(self, pl_module: Any, direction: Mapping[str, Tensor], *, in_place: bool = False) -> dict[str, Tensor]:
        chosen = dict(direction)
        # selected first, so that blocks that do not count are neither scaled nor part of the usual scale
        if self.settings.include is not None or self.settings.exclude:
            chosen = select_blocks(chosen, include=self.settings.include, exclude=self.settings.exclude)
        return self._preconditioned(pl_module, chosen, in_place=in_place)

    def _preconditioned(
        self, pl_module: Any, direction: dict[str, Tensor], *, in_place: bool = False
    ) -> dict[str, Tensor]:
        if not self.settings.adam_aware:
            return direction
        return precondition(direction, model=pl_module, optimizer=adam_of(pl_module), in_place=in_place)


def _digest_of(target: TargetLoss) -> int:
    """Return a number for the rows of a target, in any order; 0 if each rank has rows of its own, which change."""
    if target.is_of_rank:
        return 0
    rows = [row for batch in target.batches for row in cut(batch, _EACH_ROW)]
    return sum(map(batch_digest, rows)) % _MODULUS


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
