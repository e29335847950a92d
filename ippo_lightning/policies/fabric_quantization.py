"""Lightning's bitsandbytes plugin, kept off adapters, trained layers and transformers' models."""

from __future__ import annotations

from lightning.fabric.plugins.precision import BitsandbytesPrecision
from torch import nn
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError


def quantize_frozen_layers_only(precision: object, module: nn.Module) -> None:
    """Tell Fabric's `BitsandbytesPrecision` which linear layers it must leave alone; call it before `Fabric.setup`.

    The plugin would quantise every linear layer, adapters and trained heads among them, and these would then neither
    train nor say so. Frozen layers of modules that are no transformers models stay its business.

    Args:
        precision: the Fabric's precision plugin, of any kind.
        module: what will be set up.

    Raises:
        UserError: the module holds a model of transformers, which has a quantisation of its own, or no frozen layer.
    """
    if not isinstance(precision, BitsandbytesPrecision):
        return
    if any(isinstance(child, PreTrainedModel) for child in module.modules()):
        raise UserError(
            "fabric.plugins: BitsandbytesPrecision is for other modules than those of transformers; remove it and set "
            "policy.quantization to nf4, fp4 or int8"
        )
    layers = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    spared = {name for name, layer in layers.items() if layer.weight.requires_grad or _is_of_adapter(name)}
    if spared == set(layers):
        raise UserError(
            "fabric.plugins: BitsandbytesPrecision finds no frozen linear layer to quantise; freeze what shall be "
            "quantised, or remove the plugin"
        )
    precision.ignore_modules = {*precision.ignore_modules, *spared}


def _is_of_adapter(name: str) -> bool:
    """Whether a module's path leads through a PEFT adapter, also one that does not train."""
    return any(part.startswith("lora_") for part in name.split("."))
