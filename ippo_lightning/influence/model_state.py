"""Leave a model exactly as it was found, whatever happens while its gradients are taken."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ippo_lightning.errors import UserError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate a model with gradients on and dropout off, then give back its modes, flags and random state.

    Args:
        model: any module; its parameters must not be replaced inside the block.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    cuda_devices = {parameter.device for parameter, _ in flags if parameter.device.type == "cuda"}
    try:
        # The caller may stand in a validation hook, where Lightning has switched gradients or autograd itself off.
        with torch.random.fork_rng(devices=list(cuda_devices)), torch.inference_mode(False), torch.enable_grad():
            _switch_dropout_off(model)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Take no gradient with respect to these parameters inside the block.

    Args:
        parameters: leaves whose `requires_grad` is restored at the end.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def gradients(
    outputs: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None, *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Differentiate by plain autograd, outside of any autocast that the caller stands in.

    Args:
        outputs: 0-dim, or any shape together with `weights`.
        inputs: what to differentiate with respect to; no `.grad` is touched.
        weights: factors of the outputs' entries, the shape of `outputs`.
        keep_graph: whether the graph will be walked again.

    Returns:
        One gradient an input, dense, the input's shape; None where the outputs do not depend on it.
    """
    # Autocast belongs to the forward. A backward inside it rounds its matmuls, twice over when it is walked twice.
    with torch.autocast(device_type=outputs.device.type, enabled=False):
        raw = torch.autograd.grad(outputs, inputs, weights, retain_graph=keep_graph, allow_unused=True)
    return tuple(gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in raw)


def averaged_gradients(
    outputs: Tensor, parameters: Sequence[nn.Parameter], weights: Tensor | None = None, *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Differentiate with respect to parameters; where ranks hold parts of them, average over the ranks.

    `torch.autograd.grad` does not know the parts of sharded parameters; `backward` does, and sums them over the ranks.
    Every rank must take part. What was in `.grad` is back afterwards.

    Args:
        outputs: as in `gradients`.
        parameters: trainable.
        weights: as in `gradients`.
        keep_graph: as in `gradients`.

    Returns:
        One gradient a parameter, whole or divided as the parameter is; None where the outputs do not depend on it.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return gradients(outputs, parameters, weights, keep_graph=keep_graph)
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with torch.autocast(device_type=outputs.device.type, enabled=False):
            outputs.backward(weights, retain_graph=keep_graph)
        return tuple(parameter.grad for parameter in parameters)
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Collect the parameters that training would change, each under the first of its names.

    Args:
        model: any module.

    Returns:
        Name to parameter, in the order of `model.named_parameters()`.

    Raises:
        UserError: there are none.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UserError(f"model: {type(model).__name__} has no trainable parameter; influence needs at least one")
    return trainable


def _switch_dropout_off(model: nn.Module) -> None:
    keep = [module for module in model.modules() if _is_left_alone(module) or _checkpoints_safely(module)]
    keep_modes = [module.training for module in keep]
    for module in model.modules():
        module.training = False
    for module, training in zip(keep, keep_modes, strict=True):
        module.training = training or _is_left_alone(module)


def _is_left_alone(module: nn.Module) -> bool:
    # bitsandbytes repacks a 4-bit weight for good on its first CPU forward in eval mode, and from then on passes no
    # gradient to its input, without an error. These layers know no dropout, so training mode changes no number.
    return bool(getattr(module, "support_avx512bf16_for_cpu", False))


def _checkpoints_safely(module: nn.Module) -> bool:
    # Transformers' layers checkpoint only in training mode; without it a long batch may not fit. A layer that calls
    # functional dropout itself, or whose checkpoints are reentrant (no torch.autograd.grad there), has to go without.
    if not getattr(module, "gradient_checkpointing", False):
        return False
    has_own_dropout = any(
        "dropout" in name and not isinstance(value, nn.Module) for name, value in vars(module).items()
    )
    function = getattr(module, "_gradient_checkpointing_func", None)
    options = function.keywords if isinstance(function, functools.partial) else {}
    return not has_own_dropout and options.get("use_reentrant") is False


HALVES = (torch.bfloat16, torch.float16)


def coarsest_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the half or 8-bit precision that a forward of the model passes through; None where it is finer throughout.

    What reaches a trainable module can be float32 and still be coarse: adapters in float32 stand on a bfloat16 base.

    Args:
        model: any module; weights, the `compute_dtype` of 4-bit layers and the caller's autocast count.
    """
    found: set[torch.dtype | None] = {parameter.dtype for parameter in model.parameters()}
    found |= {getattr(module, "compute_dtype", None) for module in model.modules()}
    devices = {parameter.device.type for parameter in model.parameters()}
    found |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
    for dtype in (*HALVES, torch.int8):
        if dtype in found:
            return dtype
    return None


def is_coarse(model: nn.Module) -> bool:
    """Return whether rounding reaches about 1e-2: half or 8-bit precision, or TF32, takes part.

    Args:
        model: any module.
    """
    return coarsest_dtype(model) is not None or torch.get_float32_matmul_precision() != "highest"
