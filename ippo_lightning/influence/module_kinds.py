"""The kinds of modules that the hooks cover, and the contractions for their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ippo_lightning.influence.contractions import (
    Rows,
    bias_term,
    convolution_term,
    embedding_term,
    layer_normalised,
    linear_term,
    rms_scale_term,
    scale_term,
)


class Term(Protocol):
    """Computes one parameter's part of the scores."""

    def __call__(self, module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
        """Contract input and output gradient of one call of the module with the direction's block.

        Args:
            module: owner of the parameter.
            inputs: its input, shape [rows, ...].
            gradient: the gradient at its output, shape [rows, ...].
            block: the direction's block, in the parameter's shape.
            rows: which axes are summed, and how.

        Returns:
            One term per row, shape [rows] (or [rows, steps]), in the block's dtype.
        """


@dataclass(frozen=True)
class ModuleKind:
    """A kind of modules whose parameters' gradients follow from input and output gradient."""

    matches: Callable[[nn.Module], bool]
    """Whether a module is of this kind; must be False for a subclass with another forward."""
    terms: Mapping[str, Term]
    """Attribute name of a parameter to its contraction."""
    knows_tokens: bool = True
    """Whether axis 1 of its output is the tokens, so that a row may contain several episodes."""


def kind_of(module: nn.Module) -> ModuleKind | None:
    """Return the kind of a module; None if the hooks do not cover it."""
    return next((kind for kind in _KINDS if kind.matches(module)), None)


def parameter_gradient(module: nn.Module, attribute: str, inputs: Tensor, gradient: Tensor, *, like: Tensor) -> Tensor:
    """Return the gradient of a parameter of a covered module, summed over rows.

    Args:
        module: of a kind that `kind_of` knows.
        attribute: of the parameter.
        inputs: the module's input, shape [rows, ...].
        gradient: the gradient at its output, shape [rows, ...].
        like: the parameter.

    Returns:
        Shape, dtype and device of the parameter.
    """
    kind = kind_of(module)
    assert kind is not None, "the caller has looked"
    term = kind.terms[attribute]
    # A backward inside autocast would round its products.
    with torch.autocast(device_type=gradient.device.type, enabled=False):
        if term is _linear_weight:  # as autograd makes it: in the precision of the forward, from one product
            steps = gradient.flatten(end_dim=-2)
            return (steps.T @ inputs.flatten(end_dim=-2).to(steps)).to(like)
        # A contraction is linear in its block, so its derivative with respect to the block is the gradient itself.
        # This reuses the contractions, whatever the kind of module.
        dtype = torch.promote_types(like.dtype, torch.float32)
        block = torch.zeros(like.shape, dtype=dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            total = term(module, inputs, gradient, block, rows=Rows(careful=False)).sum()
        return torch.autograd.grad(total, block)[0].to(like)


def _is_linear(module: nn.Module) -> bool:
    return _keeps_forward_of(module, nn.Linear)


def _is_conv1d(module: nn.Module) -> bool:
    # The Conv1D of Transformers (GPT-2): a linear layer whose weight is stored as [in, out].
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module.weight, "ndim", 0) == 2


def _is_convolution(module: nn.Module) -> bool:
    return any(_keeps_forward_of(module, base) for base in (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _is_group_norm(module: nn.Module) -> bool:
    return _keeps_forward_of(module, nn.GroupNorm)


def _is_embedding(module: nn.Module) -> bool:
    # max_norm changes the weight in the forward; scale_grad_by_freq mixes the episodes of a batch.
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or module.scale_grad_by_freq:
        return False
    return _keeps_forward_of(module, nn.Embedding) or type(module).__name__.endswith("ScaledWordEmbedding")


def _is_layer_norm(module: nn.Module) -> bool:
    return _keeps_forward_of(module, nn.LayerNorm)


def _is_rms_norm(module: nn.Module) -> bool:
    # By name: each language model has its own class, without a common base.
    if not type(module).__name__.endswith("RMSNorm"):
        return False
    # Gemma multiplies by 1 + w instead of w, which has the same derivative.
    return isinstance(module, nn.RMSNorm) or hasattr(module, "variance_epsilon") or hasattr(module, "eps")


def _keeps_forward_of(module: nn.Module, base: type[nn.Module]) -> bool:
    # A subclass may be quantised or look up other rows than its input states; it then has a forward of its own.
    return isinstance(module, base) and type(module).forward is base.forward


def _linear_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    return linear_term(inputs=inputs, output_gradient=gradient, block=block, rows=rows)


def _conv1d_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    return linear_term(inputs=inputs, output_gradient=gradient, block=block.T, rows=rows)


def _convolution_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    # `_conv_forward` with the block as weight applies the module's own stride, padding (also circular) and groups. Not
    # under no_grad: the derivative with respect to the block is the gradient of a row.
    along = module._conv_forward(inputs.to(dtype=block.dtype), block, None)
    return convolution_term(output_along=along, output_gradient=gradient, block=block, rows=rows)


def _channel_bias(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    return bias_term(output_gradient=gradient, block=_by_channel(block, gradient), rows=rows)


def _group_norm_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    assert isinstance(module, nn.GroupNorm)
    normalised = torch.nn.functional.group_norm(inputs, module.num_groups, eps=module.eps)
    return scale_term(normalised=normalised, output_gradient=gradient, block=_by_channel(block, gradient), rows=rows)


def _by_channel(block: Tensor, gradient: Tensor) -> Tensor:
    # [channels] to [channels, 1, ...]: the channels come before the axes of space
    return block.reshape(-1, *(1 for _ in range(gradient.ndim - 2)))


def _bias(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    return bias_term(output_gradient=gradient, block=block, rows=rows)


def _embedding_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    assert isinstance(module, nn.Embedding)
    scale = getattr(module, "embed_scale", None)  # some models multiply what they look up (Gemma, BART)
    if scale is not None:
        gradient = gradient * torch.as_tensor(scale, device=gradient.device).to(dtype=module.weight.dtype)
    return embedding_term(
        ids=inputs, output_gradient=gradient, block=block, padding_index=module.padding_idx, rows=rows
    )


def _layer_norm_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    normalised = layer_normalised(inputs=inputs, dims=_feature_dims(block), eps=module.eps)
    return scale_term(normalised=normalised, output_gradient=gradient, block=block, rows=rows)


def _rms_norm_weight(module: nn.Module, inputs: Tensor, gradient: Tensor, block: Tensor, *, rows: Rows) -> Tensor:
    if isinstance(module, nn.RMSNorm):
        eps: Any = torch.finfo(inputs.dtype).eps if module.eps is None else module.eps
        values = inputs.to(dtype=torch.promote_types(inputs.dtype, torch.float32))
    else:
        # Language models normalise in float32 for every input dtype. Without the same rounding here, scores of float64
        # models would differ by 1e-8 from their definition.
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        values = inputs.to(dtype=torch.float32)
    return rms_scale_term(inputs=values, output_gradient=gradient, block=block, eps=float(eps), rows=rows)


def _feature_dims(block: Tensor) -> tuple[int, ...]:
    return tuple(range(-block.ndim, 0))


_KINDS = (
    ModuleKind(matches=_is_linear, terms={"weight": _linear_weight, "bias": _bias}),
    ModuleKind(matches=_is_conv1d, terms={"weight": _conv1d_weight, "bias": _bias}),
    ModuleKind(
        matches=_is_convolution, terms={"weight": _convolution_weight, "bias": _channel_bias}, knows_tokens=False
    ),
    ModuleKind(matches=_is_group_norm, terms={"weight": _group_norm_weight, "bias": _channel_bias}, knows_tokens=False),
    ModuleKind(matches=_is_embedding, terms={"weight": _embedding_weight}),
    ModuleKind(matches=_is_layer_norm, terms={"weight": _layer_norm_weight, "bias": _bias}),
    ModuleKind(matches=_is_rms_norm, terms={"weight": _rms_norm_weight}),
)
