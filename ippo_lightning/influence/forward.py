"""Forward-mode scores: one forward gives a function of a batch and its derivative along the direction."""

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

# By name: importing bitsandbytes here would make every user of this room need it.
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
    attention uses its plain kernel here; its memory grows with the square of the length.
    Source: Wengert 1964, "A simple automatic derivative evaluation program".

    Args:
        model: dropout off; unchanged afterwards, also after an error.
        function: called with the model and the batch; returns any shape, float.
        batch: the function's second argument.
        blocks: the direction's blocks.
        dtype: dtype of the derivative.

    Returns:
        The function's value, and its derivative in the same shape.

    Raises:
        UserError: a model whose derivative would be silently wrong, or a kernel without forward derivative.
    """
    refuse_what_drops_tangents(model)
    # Forward mode needs no graph, so no_grad saves the activations. Dual numbers exist only inside a level, so it is
    # opened before they are made.
    with torch.no_grad(), forward_ad.dual_level(), _dual_parameters(model, blocks), sdpa_kernel(SDPBackend.MATH):
        try:
            primal, tangent = forward_ad.unpack_dual(function(model, batch))
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error):  # torch has no error class for a missing forward derivative
                raise
            first = str(error).splitlines()[0][:160]
            raise UserError(
                f"method: 'forward' requires a forward derivative, but a kernel has none ({first}); use 'hooks'"
            ) from error
        # No tangent means that the value does not depend on any of the parameters.
        derivative = torch.zeros_like(primal, dtype=dtype) if tangent is None else tangent.to(dtype=dtype)
        return primal.detach(), derivative.detach()


def verify_forward(
    model: Model,
    function: Callable[[Model, Batch], Tensor],
    batch: Batch,
    blocks: Sequence[Block],
    derivative: Tensor,
) -> None:
    """Check a batch's derivatives against plain autograd, which finds a kernel that drops its tangent.

    Args:
        model: dropout off.
        function: as in `forward_derivative`.
        batch: as in `forward_derivative`.
        blocks: as in `forward_derivative`.
        derivative: the result of `forward_derivative`, [rows] or [rows, steps].

    Raises:
        ChecksumError: they disagree.
    """
    # Flat, so that the checksum weighs each token like an episode and finds exchanged tokens, too.
    value = function(model, batch).flatten()
    coarse = value.dtype in HALVES or is_coarse(model)
    verify_checksum(value, derivative.flatten().unsqueeze(0), [blocks], is_coarse=coarse)


def refuse_what_drops_tangents(model: nn.Module) -> None:
    """Refuse models with kernels that lose the derivative without an error.

    Args:
        model: any module.

    Raises:
        UserError: names a 4-bit or 8-bit layer, a compiled module, or a fused attention.
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
                "method: 'forward' requires attention with a forward derivative, got "
                f"attn_implementation='{attention}'; load the model with 'sdpa' or 'eager', or use 'hooks'"
            )


@contextmanager
def _dual_parameters(model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Replace parameters by dual numbers in every module that owns them; put the parameters back afterwards."""
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
                    # Not by setattr: it refuses a tensor that is no Parameter, and the order of names must not change.
                    stack.callback(module._parameters.__setitem__, name, parameter)
                    module._parameters[name] = dual
        yield
