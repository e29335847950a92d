"""Take gradients of a model and leave its state as it was; find the precision in which it computes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.dtensor import reshard
from ippo_lightning.errors import UserError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate a model with gradients on and dropout off; restore its modes, flags and random state afterwards.

    Args:
        model: any module; its parameters must not be replaced inside the block.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    cuda_devices = {parameter.device for parameter, _ in flags if parameter.device.type == "cuda"}
    try:
        # A validation hook may be the caller: there Lightning has switched gradients or autograd itself off. Losses may
        # draw random numbers; without fork_rng, scoring would change which responses the run samples next.
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
    """Compute no gradients of these parameters inside the block.

    Args:
        parameters: leaves; their `requires_grad` is restored at the end.
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
    """Differentiate by plain autograd, outside any autocast of the caller.

    Args:
        outputs: 0-dim, or any shape together with `weights`.
        inputs: tensors to differentiate with respect to; `.grad` does not change.
        weights: factors of the outputs' entries, the shape of `outputs`.
        keep_graph: whether a second backward will use the graph.

    Returns:
        One gradient per input, dense, in the input's shape; None if the outputs do not depend on it.
    """
    # Autocast is for forwards. A backward inside it rounds its matmuls, and two backwards would round differently.
    with torch.autocast(device_type=outputs.device.type, enabled=False):
        raw = torch.autograd.grad(outputs, inputs, weights, retain_graph=keep_graph, allow_unused=True)
    # An embedding with sparse=True has a sparse gradient, which cannot be contracted with a dense block.
    return tuple(gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in raw)


def averaged_gradients(
    outputs: Tensor, parameters: Sequence[nn.Parameter], weights: Tensor | None = None, *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Differentiate with respect to parameters; average over ranks if the parameters are sharded.

    All ranks must call this for sharded parameters. `.grad` is restored afterwards.

    Args:
        outputs: as in `gradients`.
        parameters: trainable.
        weights: as in `gradients`.
        keep_graph: as in `gradients`.

    Returns:
        One gradient per parameter, sharded if the parameter is; None if the outputs do not depend on it.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return gradients(outputs, parameters, weights, keep_graph=keep_graph)
    # `torch.autograd.grad` does not reach the shards. `backward` does: FSDP2 reduces the gradients in its hooks and
    # writes them to `.grad`.
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
    """Return the parameters that require gradients, each under the first of its names.

    Args:
        model: any module; one that is sharded is left with its shards, see `reshard`.

    Returns:
        Name to parameter, in the order of `model.named_parameters()`.

    Raises:
        UserError: there are none.
    """
    reshard(model)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UserError(f"model: {type(model).__name__} has no trainable parameter; expected at least one")
    return trainable


def _switch_dropout_off(model: nn.Module) -> None:
    # Flag by flag: `model.eval()` may be overridden, and it would switch the modules that must stay in training mode.
    keep = [module for module in model.modules() if _is_left_alone(module) or _checkpoints_safely(module)]
    keep_modes = [module.training for module in keep]
    for module in model.modules():
        module.training = False
    for module, training in zip(keep, keep_modes, strict=True):
        module.training = training or _is_left_alone(module)


def _is_left_alone(module: nn.Module) -> bool:
    # In its first CPU forward in eval mode, bitsandbytes repacks a 4-bit weight permanently; from then on the layer
    # passes no gradient to its input, without an error. Such layers have no dropout, so their mode changes no number.
    return bool(getattr(module, "support_avx512bf16_for_cpu", False))


def _checkpoints_safely(module: nn.Module) -> bool:
    # Layers of Transformers checkpoint only in training mode, and a long batch may not fit without checkpoints. But a
    # layer must be in eval mode if it calls functional dropout itself, or if its checkpoints are reentrant: those do
    # not support torch.autograd.grad.
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
    """Return the half or 8-bit precision in which a part of the model computes; None if all parts are finer.

    The inputs of a trainable module can be float32 and still be coarse: float32 adapters may sit on a bfloat16 base.

    Args:
        model: any module; its weights, the `compute_dtype` of 4-bit layers and the caller's autocast count.
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
    """Return whether rounding reaches about 1e-2, because half or 8-bit precision or TF32 takes part.

    Args:
        model: any module.
    """
    return coarsest_dtype(model) is not None or torch.get_float32_matmul_precision() != "highest"
