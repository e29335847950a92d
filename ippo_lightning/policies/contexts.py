"""Change the state of a model or of the random numbers for a block, and restore it also after an error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, then restore the mode of each.

    Args:
        module: its submodules may be in different modes; each one is restored separately.
    """
    # module.train(mode) afterwards would set one mode for all, and layers that the user froze would change theirs
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator that starts at `seed`; the caller's random numbers do not change.

    Only the CPU generator is used and restored: new weights are always drawn there.

    Args:
        seed: start of the random numbers inside the block.
    """
    state = torch.get_rng_state()
    try:
        # torch.manual_seed would also seed the generators of all GPUs, which are not restored here
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def keeping_trainable_flags(module: nn.Module) -> Iterator[None]:
    """Restore the `requires_grad` of every parameter after the block.

    Args:
        module: the parameters' owner.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Restore modes, buffers, plain attributes and all random numbers after the block, also after an error.

    Forwards may leave traces: a rotary embedding stores the table of the longest row that it has seen, and generation
    switches the cache.

    Args:
        modules: their parameters must not change inside the block.
    """
    kept = [(child, _state_of(child)) for module in modules for child in module.modules()]
    python, numbers = random.getstate(), numpy.random.get_state()
    parameters = [parameter for module in modules for parameter in module.parameters()]
    devices = sorted({parameter.device.index or 0 for parameter in parameters if parameter.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
        for child, state in kept:
            _restore(child, *state)


@contextmanager
def spread_weights(module: nn.Module) -> Iterator[None]:
    """Add noise to every matrix for the block, and put the same bits back afterwards, also after an error.

    Matrices of a new model are so small, or zero, that attention is uniform and some layers pass nothing on. What a
    layer does with padding or positions would then not show. The noise is that of a unit gain: 1 / sqrt(inputs).

    Args:
        module: its weights need twice their memory inside the block.
    """
    generator = torch.Generator().manual_seed(0)
    kept = {parameter: parameter.detach().clone() for parameter in module.parameters() if parameter.dim() > 1}
    try:
        with torch.no_grad():
            for parameter in kept:
                noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                parameter.add_(noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, content in kept.items():
                parameter.copy_(content)


# Everything else among the attributes of a module is left alone: parameters, submodules, hooks, configurations.
_PLAIN = (bool, int, float, str, type(None))


def _state_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor | None], dict[str, Tensor]]:
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    buffers = dict(module._buffers)
    return plain, buffers, {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}


def _restore(
    module: nn.Module, plain: dict[str, Any], buffers: dict[str, Tensor | None], contents: dict[str, Tensor]
) -> None:
    # without `setattr`, for which a buffer of the same name would be in the way
    vars(module).update(plain)
    module._buffers.clear()
    module._buffers.update(buffers)
    for name, content in contents.items():
        buffer = module._buffers[name]
        # compared first: a write would raise the version of a buffer that autograd may have saved
        if buffer is not None and not torch.equal(buffer, content):
            buffer.copy_(content)


def disable_dropout(module: nn.Module) -> None:
    """Set every dropout probability in `module` to zero, so that train and evaluation mode agree.

    PPO's ratio compares log-probabilities of two passes; a dropout mask in one of them makes the ratio noise.

    Args:
        module: changed in place.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        # attention layers have no dropout module: their probability is a plain number among their attributes
        for name, number in vars(child).items():
            if isinstance(number, float) and ("dropout" in name or "layerdrop" in name or name.endswith("pdrop")):
                setattr(child, name, 0.0)


def checkpoint_gradients(network: PreTrainedModel, *, contexts: Callable[[], object] | None = None) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Args:
        network: changed in place.
        contexts: returns those of a layer's forward, and of its forward in the backward pass; None for none.
    """
    # Non-reentrant checkpointing needs no gradient at the inputs, so a frozen embedding is no obstacle.
    settings: dict[str, Any] = {"use_reentrant": False, **({} if contexts is None else {"context_fn": contexts})}
    model: Any = network
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:  # its name in transformers before 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
