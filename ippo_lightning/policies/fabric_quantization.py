"""Keep Lightning's bitsandbytes plugin away from adapters, trained layers and transformers' models."""

from __future__ import annotations

from lightning.fabric.plugins.precision import BitsandbytesPrecision
from torch import nn
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError


def quantize_frozen_layers_only(precision: object, module: nn.Module) -> None:
    """Tell Fabric's `BitsandbytesPrecision` which linear layers it must leave alone; call it before `Fabric.setup`.

    The plugin quantises every linear layer, adapters and trained heads included. These then stop training, without any
    error. Frozen layers of modules that are not transformers' models remain for the plugin.

    Args:
        precision: the Fabric's precision plugin, of any kind.
        module: the module for `Fabric.setup`.

    Raises:
        UserError: the module contains a model of transformers, which has a quantisation of its own, or no frozen layer.
    """
    if not isinstance(precision, BitsandbytesPrecision):
        return
    if any(isinstance(child, PreTrainedModel) for child in module.modules()):
        raise UserError(
            "fabric.plugins: BitsandbytesPrecision does not work for models of transformers; remove it and set "
            "policy.quantization to nf4, fp4 or int8"
        )
    # A frozen adapter (a reference, for instance) is spared too: quantised, it would no longer be the policy's start.
    layers = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    spared = {name for name, layer in layers.items() if layer.weight.requires_grad or _is_of_adapter(name)}
    if spared == set(layers):
        raise UserError(
            "fabric.plugins: BitsandbytesPrecision finds no frozen linear layer to quantise; freeze the layers to "
            "quantise, or remove the plugin"
        )
    precision.ignore_modules = {*precision.ignore_modules, *spared}


def _is_of_adapter(name: str) -> bool:
    """Return whether a module belongs to a PEFT adapter, trained or frozen."""
    return any(part.startswith("lora_") for part in name.split("."))
