"""A model that judges is called as it is meant to be used: in eval mode, without gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(given: object) -> Iterator[None]:
    """Put the modules behind a callable into eval mode and compute no gradients; restore each submodule's mode after.

    Args:
        given: an `nn.Module`, a method of one, or a `functools.partial` of either; a module among the arguments of a
            partial counts too. Any other callable is left alone, because it may train on purpose.
    """
    found = list(_modules_behind(given))
    if not found:
        yield
        return
    # a part may be frozen in eval mode while the rest trains, so one flag for all would not restore it
    modes = [(part, part.training) for module in found for part in module.modules()]
    for module in found:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, is_training in modes:
            part.training = is_training


def _modules_behind(given: object) -> Iterator[nn.Module]:
    if isinstance(given, nn.Module):
        yield given
    elif isinstance(given, functools.partial):
        for part in (given.func, *given.args, *given.keywords.values()):
            yield from _modules_behind(part)
    elif isinstance(owner := getattr(given, "__self__", None), nn.Module):
        yield owner
