"""Gradients of parameters that are made from some of the rows of a batch, for each parameter from its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.influence.module_kinds import kind_of, parameter_gradient
from ippo_lightning.influence.refusals import CoverageError
from ippo_lightning.records.row_bands import first_row_of_band


class RowShare(NamedTuple):
    """The rows that the gradient of a parameter is made from."""

    keep: Tensor
    """[rows] bool, False for a row that is left out."""
    scale: float = 1.0
    """What the sum over the kept rows is multiplied by."""


@contextmanager
def gradients_of_rows(model: nn.Module, shares: Mapping[str, RowShare]) -> Iterator[None]:
    """Make the gradients of some parameters from some rows only, in each forward and backward inside the block.

    The gradient of a weight is a sum over rows of (gradient at the module's output) x (its input). Here the sum leaves
    rows out, while the gradient that flows on to earlier modules stays that of all rows. All other parameters have
    their usual gradients, bit for bit.

    The gradients reach the parameters through autograd, so that `.grad` adds up over several backwards and wrappers
    such as DistributedDataParallel average it. Kept rows cost what they always cost, the others nothing.

    Args:
        model: any module, not sharded and not compiled, with one row per row of the batch; `row_band` tells which rows
            a module sees if it sees some.
        shares: parameter name to its rows; one that is not trainable is ignored.

    Raises:
        UserError: a name is none of the model's, or the model is sharded or compiled.
        CoverageError: a parameter belongs to a module of an unknown kind; in a forward, a module sees other rows.
    """
    require_row_gradients(model)
    owners = _owners(model, shares)
    handles = []
    try:
        for owner in owners:
            handles.append(owner.module.register_forward_pre_hook(_freezing(owner)))
            # Before other hooks, which may replace the output by something that is not linear in the parameters.
            hook = _watching(owner)
            # Also after an error, so that no parameter stays frozen.
            handle = owner.module.register_forward_hook(hook, prepend=True, with_kwargs=True, always_call=True)
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_row_gradients(model: nn.Module) -> None:
    """Refuse models whose modules' hooks do not see all of their rows, or whose parameters are no whole tensors.

    Args:
        model: any module.

    Raises:
        UserError: it is sharded, or a part of it is compiled.
    """
    if is_sharded(model):
        raise UserError("model: it is sharded, so a gradient cannot be made from some rows only; use DDP")
    for path, module in model.named_modules():
        if any(base.__name__ == "OptimizedModule" for base in type(module).__mro__):
            raise UserError(
                f"model: '{path or '(the model itself)'}' is compiled, so hooks may not see it, and a gradient cannot "
                "be made from some rows only; do not compile it"
            )


class _Part(NamedTuple):
    attribute: str
    parameter: nn.Parameter
    share: RowShare


class _Owner(NamedTuple):
    path: str
    module: nn.Module
    parts: tuple[_Part, ...]


def _owners(model: nn.Module, shares: Mapping[str, RowShare]) -> list[_Owner]:
    """Return every module that owns one of the parameters; a tied parameter appears in each of its owners."""
    named = dict(model.named_parameters())
    unknown = next((name for name in shares if name not in named), None)
    if unknown is not None:
        raise UserError(f"shares: '{unknown}' is no parameter of the model; expected names of named_parameters()")
    by_parameter = {id(named[name]): share for name, share in shares.items() if named[name].requires_grad}
    owners = []
    for path, module in model.named_modules():
        parts = tuple(
            _Part(attribute, parameter, by_parameter[id(parameter)])
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in by_parameter
        )
        kind = kind_of(module)
        for part in parts:
            if kind is None or part.attribute not in kind.terms:
                found = f"of type {type(module).__name__}, as '{part.attribute}'"
                raise CoverageError(f"model: '{path}' {found}, has a gradient that cannot be split by row; freeze it")
        if parts:
            owners.append(_Owner(path, module, parts))
    return owners


def _freezing(owner: _Owner) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        # The module's own backward would make the gradient from all rows.
        for part in owner.parts:
            part.parameter.requires_grad_(False)

    return hook


def _watching(owner: _Owner) -> Callable[..., Tensor | None]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor | None
    ) -> Tensor | None:
        for part in owner.parts:
            part.parameter.requires_grad_(True)
        if output is None or not torch.is_grad_enabled():  # an error, or a pass without a gradient
            return None
        # A model may call its layers by keyword, so the input is the first tensor of either kind.
        inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        parameters = [part.parameter for part in owner.parts]
        found: Tensor = _RowGradients.apply(output, inputs.detach(), owner, first_row_of_band(), *parameters)
        return found

    return hook


class _RowGradients(torch.autograd.Function):
    """The identity; its backward passes the gradient on, and gives the parameters that of their rows."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, owner: _Owner, first_row: int | None, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.owner, ctx.first_row = owner, first_row
        # A detached alias needs no memory and, unlike a view, may be changed in place by the next module, say a ReLU.
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        owner: _Owner = ctx.owner
        found = [_of_rows(owner, part, inputs, gradient, ctx.first_row) for part in owner.parts]
        return gradient, None, None, None, *found


def _of_rows(owner: _Owner, part: _Part, inputs: Tensor, gradient: Tensor, first_row: int | None) -> Tensor:
    """Return the gradient of a parameter by one call of its module."""
    keep = part.share.keep
    if first_row is not None:
        keep = keep[first_row : first_row + len(gradient)]
    if len(keep) != len(gradient):
        raise CoverageError(
            f"model: '{owner.path}' ran on a batch of {len(gradient)} rows while there are {len(keep)}, so its "
            "gradient cannot be split by row; give every row its own (for position embeddings, pass position_ids)"
        )
    rows = keep.to(gradient.device).nonzero().flatten()
    if not len(rows):
        return torch.zeros_like(part.parameter)
    # Rows that are left out are not even multiplied, so a NaN in one of them stays there.
    is_whole = len(rows) == len(gradient)
    chosen = (inputs, gradient) if is_whole else (inputs[rows], gradient[rows])
    found = parameter_gradient(owner.module, part.attribute, *chosen, like=part.parameter)
    return found if part.share.scale == 1 else found * part.share.scale
