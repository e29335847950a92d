"""Forward-mode scores: a function of a batch and its derivative along the direction, in one forward, no backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ippo_lightning.errors import UserError
from ippo_lightning.influence.checksum import verify_checksum
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.model_state import HALVES, is_coarse

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)

_QUANTISED = ("Linear4bit", "Linear8bitLt", "Params4bit", "Int8Params")
_KERNELS_WITHOUT = ("flash", "flex")


def forward_derivative(
    model: Model,
    function: Callable[[Model, Batch], Tensor],
    batch: Batch,
    blocks: Sequence[Block],
    *,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Evaluate a function of a batch and its derivative along the direction, by dual numbers.

    d/de f(theta + e V) at e = 0, exact up to rounding. Fused attention has no forward derivative, so scaled dot-product
    attention runs in its plain form here, whose memory grows with the square of the length.
    Source: Wengert 1964, "A simple automatic derivative evaluation program".

    Args:
        model: dropout off; left as it was, also after an error.
        function: called with the model and the batch; any shape, float.
        batch: what the function takes.
        blocks: parameters and their blocks of the direction.
        dtype: of the derivative.

    Returns:
        The function's value, and its derivative of the same shape.

    Raises:
        UserError: a model whose derivative would be silently wrong, or a kernel without forward derivative.
    """
    refuse_what_drops_tangents(model)
    with torch.no_grad(), forward_ad.dual_level(), _dual_parameters(model, blocks), sdpa_kernel(SDPBackend.MATH):
        try:
            primal, tangent = forward_ad.unpack_dual(function(model, batch))
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error):
                raise
            first = str(error).splitlines()[0][:160]
            raise UserError(
                f"method: 'forward' met a kernel without forward derivative ({first}); use 'hooks'"
            ) from error
        derivative = torch.zeros_like(primal, dtype=dtype) if tangent is None else tangent.to(dtype=dtype)
        return primal.detach(), derivative.detach()


def verify_forward(
    model: Model,
    function: Callable[[Model, Batch], Tensor],
    batch: Batch,
    blocks: Sequence[Block],
    derivative: Tensor,
) -> None:
    """Check a batch's derivatives against plain autograd; a kernel that dropped its tangent shows here.

    Args:
        model: dropout off.
        function: as for `forward_derivative`.
        batch: as for `forward_derivative`.
        blocks: as for `forward_derivative`.
        derivative: what `forward_derivative` returned, [rows] or [rows, steps].

    Raises:
        ChecksumError: they disagree.
    """
    value = function(model, batch).flatten()
    coarse = value.dtype in HALVES or is_coarse(model)
    verify_checksum(value, derivative.flatten().unsqueeze(0), [blocks], is_coarse=coarse)


def refuse_what_drops_tangents(model: nn.Module) -> None:
    """Refuse models whose kernels lose the derivative without an error.

    Args:
        model: any module.

    Raises:
        UserError: a 4-bit or 8-bit layer, a compiled module, or a fused attention is named.
    """
    for path, module in model.named_modules():
        kinds = {base.__name__ for base in type(module).__mro__}
        weight = getattr(module, "weight", None)
        if kinds.intersection(_QUANTISED) or getattr(weight, "quant_state", None) is not None:
            raise UserError(
                f"method: 'forward' would silently lose the derivative in the quantised layer '{path}'; use 'hooks'"
            )
        if "OptimizedModule" in kinds:
            raise UserError(f"method: 'forward' may lose the derivative in the compiled module '{path}'; use 'hooks'")
        attention = str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
        if any(name in attention for name in _KERNELS_WITHOUT):
            raise UserError(
                f"method: 'forward' needs attention with a forward derivative, got attn_implementation='{attention}'; "
                "load the model with 'sdpa' or 'eager', or use 'hooks'"
            )


@contextmanager
def _dual_parameters(model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Put dual numbers in the places of parameters, in every module that owns them; afterwards put these back."""
    duals = {
        id(block.parameter): forward_ad.make_dual(
            block.parameter.detach(), block.direction.to(dtype=block.parameter.dtype)
        )
        for block in blocks
    }
    with ExitStack() as stack:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                dual = duals.get(id(parameter))
                if dual is not None:
                    # past register_parameter: a dual number is no Parameter, and the order of the names must stay
                    stack.callback(module._parameters.__setitem__, name, parameter)
                    module._parameters[name] = dual
        yield
