"""Train mode without randomness: parts that compute differently in train mode stay in evaluation mode."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def quieten(*networks: object) -> None:
    """Put every part of networks that is in train mode into evaluation mode, but the layers that checkpoint.

    A layer computes its activations again in the backward pass only if it is in train mode itself; what it contains
    may be in evaluation mode.

    Args:
        networks: changed in place; what is no module is left out.
    """
    for network in networks:
        modules = list(network.modules()) if isinstance(network, nn.Module) else []
        flagged = [module for module in modules if getattr(module, "gradient_checkpointing", False) is True]
        # A model carries the flag too, but does not read it if its layers checkpoint on their own. Its own randomness,
        # such as skipping layers, would stay on.
        layers = [module for module in flagged if isinstance(module, GradientCheckpointingLayer)]
        keep = {id(module) for module in layers or flagged}
        for module in modules:
            module.training = module.training and id(module) in keep


def draws_random_numbers(call: Callable[[], object]) -> bool:
    """Return whether a call moves a generator of random numbers: torch's on any device, Python's or numpy's.

    This finds randomness that a comparison of two results would miss: a layer that is skipped in one of twenty passes.

    Args:
        call: run once.
    """
    before = _states()
    call()
    return before != _states()


def _states() -> list[object]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch_states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    # as text, because a comparison of the arrays inside would be an array
    return [*torch_states, random.getstate(), str(numpy.random.get_state(legacy=False))]


def kinds_with_gradient(network: nn.Module, loss: Callable[[], Tensor]) -> set[str]:
    """Return the kinds of trainable parameters that get a gradient; a kind is a name without its numbers.

    By kind and not by name: which experts of a mixture get a gradient changes with the rounding of the router.

    Args:
        network: gets no `.grad`.
        loss: a scalar of the network.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not named:
        return set()
    with torch.enable_grad():
        value = loss()
        if not value.requires_grad:
            return set()
        gradients = torch.autograd.grad(value, [parameter for _, parameter in named], allow_unused=True)
    found = zip(named, gradients, strict=True)
    return {re.sub(r"\d+", "#", name) for (name, _), gradient in found if gradient is not None}
