"""Put a model, or the random numbers, into a state and bring them back afterwards, also when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold every submodule in evaluation mode, then give each its own mode back.

    Args:
        module: its submodules may be in different modes; all are remembered one by one.
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator started at `seed`, leaving the caller's random numbers untouched.

    Only the CPU generator is used and restored: new weights are always drawn there.

    Args:
        seed: start of the random numbers inside the block.
    """
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def keeping_trainable_flags(module: nn.Module) -> Iterator[None]:
    """Give every parameter its `requires_grad` back, whatever the block does to it.

    Args:
        module: the parameters' owner.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def disable_dropout(module: nn.Module) -> None:
    """Set every dropout probability in `module` to zero, so that train and evaluation mode agree.

    PPO's ratio compares log-probabilities of two passes; a dropout mask in either makes it noise. Attention layers
    keep their probability as a plain number, hence the look at attributes.

    Args:
        module: changed in place.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        for name, number in vars(child).items():
            if isinstance(number, float) and ("dropout" in name or "layerdrop" in name or name.endswith("pdrop")):
                setattr(child, name, 0.0)


def checkpoint_gradients(network: PreTrainedModel) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Args:
        network: changed in place.
    """
    # Non-reentrant checkpointing needs no gradient at the inputs, so a frozen embedding is no obstacle.
    settings = {"use_reentrant": False}
    model: Any = network
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:  # its name in transformers before 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
