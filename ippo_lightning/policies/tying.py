"""Embedding and head that are one weight, under adapters: PEFT cannot merge into them, so they are parted before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def text_configs(network: PreTrainedModel) -> list[Any]:
    """Return the configurations that state whether weights are tied; a multimodal model has one of its text part too.

    Args:
        network: without PEFT around it.
    """
    return [network.config, network.config.get_text_config()]


def untie(model: nn.Module, configs: list[Any]) -> None:
    """Give each owner of a shared weight a weight of its own, so that a merge into one does not change the other.

    Args:
        model: changed in place.
        configs: see `text_configs`. They state it too: else PEFT warns, of ties that no longer exist.
    """
    owned: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in owned:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            elif parameter is not None:
                owned.add(id(parameter))
    for config in configs:
        if getattr(config, "tie_word_embeddings", None) is not None:
            config.tie_word_embeddings = False


@contextmanager
def adapters_on_tied_weights() -> Iterator[None]:
    """Without PEFT's warning of an adapter on a tied weight: what it warns of, a wrong merge, is prevented here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer")
        yield
