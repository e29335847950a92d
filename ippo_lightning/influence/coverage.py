"""Match every block of a direction to the modules whose hooks account for it, or explain why that is impossible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import have_nonzero, local
from ippo_lightning.errors import UserError
from ippo_lightning.influence.directions import Direction
from ippo_lightning.influence.model_state import trainable_parameters
from ippo_lightning.influence.module_kinds import Term, kind_of
from ippo_lightning.influence.refusals import CoverageError


@dataclass(frozen=True)
class Block:
    """A trainable parameter and the direction's block for it."""

    name: str
    """The first of its names in the model."""
    parameter: nn.Parameter
    """Trainable; several modules may own it."""
    direction: Tensor
    """Shape and device of the parameter, float32 or float64; sharded if the parameter is."""


@dataclass(frozen=True)
class HookedParameter:
    """A parameter of a hooked module, and each direction's block for it."""

    name: str
    """The first of its names in the model."""
    term: Term
    """The contraction for this parameter."""
    blocks: tuple[Tensor | None, ...]
    """One per direction; None if that direction is zero on it."""


@dataclass(frozen=True)
class HookedModule:
    """A module whose forward is hooked, and the contractions for its parameters."""

    name: str
    """Path in the model."""
    module: nn.Module
    """Owner of the parameters."""
    parts: tuple[HookedParameter, ...]
    """Its parameters on which at least one direction is not zero."""
    knows_tokens: bool
    """Whether axis 1 of its output is the tokens."""


def active_blocks(model: nn.Module, direction: Direction) -> list[Block]:
    """Select the trainable parameters on which the direction is not zero.

    Args:
        model: any module.
        direction: parameter name to block; a trainable parameter without a block counts as zero.

    Returns:
        One entry per parameter, in the model's order; all in float64 if any block is float64, else in float32.

    Raises:
        UserError: no trainable parameter, an unknown or frozen name, a block of another shape, NaN or infinity.
    """
    trainable = trainable_parameters(model)
    dtype = accumulation_dtype(direction)
    for name, block in direction.items():
        _check_block(model, trainable, name, block)
    # In the model's order, so that all ranks reduce the counts of sharded blocks in the same order.
    names = [name for name in trainable if name in direction]
    # Without zero blocks: a parameter that no hook covers does no harm if the direction is zero on it.
    return [
        Block(name, trainable[name], direction[name].detach().to(device=trainable[name].device, dtype=dtype))
        for name, counts in zip(names, have_nonzero([direction[name] for name in names]), strict=True)
        if counts
    ]


def accumulation_dtype(direction: Direction) -> torch.dtype:
    """Return the dtype in which scores along this direction are summed: float64 if any block is, else float32."""
    has_double = any(block.dtype == torch.float64 for block in direction.values())
    return torch.float64 if has_double else torch.float32


def hooked_modules(model: nn.Module, directions: Sequence[Sequence[Block]]) -> list[HookedModule]:
    """Find every module that owns one of the blocks' parameters, with the contractions that account for it.

    Args:
        model: any module.
        directions: for each direction the result of `active_blocks`.

    Returns:
        One entry per module; a tied parameter appears in each of its owners.

    Raises:
        CoverageError: an owner is of an unknown kind, or a 4-bit layer that no longer passes gradients.
    """
    # By identity, not by name: a tied parameter has one name in `named_parameters` but several owners.
    by_parameter = [{id(block.parameter): block for block in blocks} for blocks in directions]
    names = {key: block.name for blocks in by_parameter for key, block in blocks.items()}
    hooked = []
    for path, module in model.named_modules():
        # Every module, not only owners of blocks: a repacked frozen layer passes no gradient to the layers before it.
        _refuse_repacked(path, module)
        parts = []
        # With duplicates: a second name of a parameter may be a second use, which needs a term of its own.
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = names.get(id(parameter))
            if name is not None:
                found = [blocks.get(id(parameter)) for blocks in by_parameter]
                blocks_of_all = tuple(None if block is None else block.direction for block in found)
                parts.append(HookedParameter(name, _term_of(path, module, attribute, name), blocks_of_all))
        if parts:
            kind = kind_of(module)
            hooked.append(HookedModule(path, module, tuple(parts), kind is not None and kind.knows_tokens))
    return hooked


def _check_block(model: nn.Module, trainable: Mapping[str, nn.Parameter], name: str, block: Tensor) -> None:
    parameter = trainable.get(name)
    if parameter is None:
        kind = "is frozen" if name in dict(model.named_parameters()) else "is no parameter of the model"
        raise UserError(f"direction: '{name}' {kind}; expected names of trainable parameters (named_parameters())")
    if block.shape != parameter.shape:
        shape, expected = tuple(block.shape), tuple(parameter.shape)
        raise UserError(f"direction: the block of '{name}' has shape {shape}, expected {expected}")
    if not bool(torch.isfinite(local(block)).all()):
        raise UserError(f"direction: the block of '{name}' contains NaN or infinity; expected finite numbers")


def _term_of(path: str, module: nn.Module, attribute: str, name: str) -> Term:
    kind = kind_of(module)
    if kind is None or attribute not in kind.terms:
        raise CoverageError(
            f"model: the trainable parameter '{name}' belongs to '{path or '(the model itself)'}' of type "
            f"{type(module).__name__}, as '{attribute}', which the scoring hooks do not cover; freeze it, "
            "or use method='per_episode'"
        )
    return kind.terms[attribute]


def _refuse_repacked(path: str, module: nn.Module) -> None:
    # By attribute, so that this room does not import bitsandbytes.
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise CoverageError(
            f"model: the 4-bit layer '{path}' was repacked for inference on the CPU and passes no gradient; load it "
            "again and set support_avx512bf16_for_cpu = False on it before the first forward in eval mode"
        )
