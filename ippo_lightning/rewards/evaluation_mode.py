"""A model that judges is called as it is meant to be used: in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


@contextmanager
def evaluation_mode(given: object) -> Iterator[None]:
    """Put the module behind a callable into eval mode and compute no gradients; restore each submodule's mode after.

    Args:
        given: an `nn.Module`, or a method of one, also behind `functools.partial`. Any other callable is left alone,
            because it may train on purpose.
    """
    while isinstance(given, partial):
        given = given.func
    module = given if isinstance(given, nn.Module) else getattr(given, "__self__", None)
    if not isinstance(module, nn.Module):
        yield
        return
    # a part may be frozen in eval mode while the rest trains, so one flag for all would not restore it
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, is_training in modes:
            part.training = is_training
