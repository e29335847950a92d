"""Change the state of a model or of the random numbers for a block, and restore it also after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
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
