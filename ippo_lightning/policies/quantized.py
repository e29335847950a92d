"""4-bit and 8-bit weights of a policy as ordinary ones; `ippo_lightning.storage.quantized_loading` loads them."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo_lightning.policies.contexts import seeded

QUANTIZED_LAYERS = (Linear4bit, Linear8bitLt)


def is_quantized(model: nn.Module) -> bool:
    """Return whether any layer has 4-bit or 8-bit weights.

    Args:
        model: any module.
    """
    return any(isinstance(module, QUANTIZED_LAYERS) for module in model.modules())


def has_8bit_layers(model: nn.Module) -> bool:
    """Return whether any layer has 8-bit weights.

    Args:
        model: any module.
    """
    return any(isinstance(module, Linear8bitLt) for module in model.modules())


def dequantized_weight(layer: Linear4bit | Linear8bitLt) -> Tensor:
    """Return the weight that a quantised layer uses, as an ordinary matrix.

    Args:
        layer: a layer with quantised weights.

    Returns:
        Weight, shape [out_features, in_features]; of a 4-bit layer in the dtype of loading, of an 8-bit layer in
        float32.
    """
    quantized: Any = layer.weight
    if isinstance(layer, Linear8bitLt):
        # the first forward moves the scales of the rows from the weight to the layer
        scales = quantized.SCB if quantized.SCB is not None else layer.state.SCB
        return int8_vectorwise_dequant(quantized.data, cast(Tensor, scales))
    # A weight gathered from several ranks has lost its scales; the layer still has them.
    state = getattr(quantized, "quant_state", None)
    weight: Tensor = dequantize_4bit(quantized.data, layer.quant_state if state is None else state)
    return weight


def restore_quantized(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put saved 4-bit and 8-bit weights into their layers, with their scales, which `load_state_dict` does not load.

    Args:
        model: changed in place.
        state: a full state dict; what was put back is removed, but for the weight itself.
    """
    for name, layer in model.named_modules():
        # a sharded weight has another class, and its checkpoint is read shard by shard
        if isinstance(layer, Linear4bit) and isinstance(layer.weight, Params4bit):
            prefix = f"{name}.weight."
            scales = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
            if not scales:
                continue
            layer.weight = Params4bit.from_prequantized(
                data=state[f"{name}.weight"], quantized_stats=scales, device=str(layer.weight.device), module=layer
            )
        elif isinstance(layer, Linear8bitLt) and f"{name}.SCB" in state:
            state.pop(f"{name}.weight_format", None)
            weight: Any = layer.weight
            # the first forward moves the scales from the weight to the layer
            owner = layer.state if weight.SCB is None else weight
            owner.SCB = state.pop(f"{name}.SCB").to(weight.device)


def dense_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return an ordinary model that uses the dequantised weights of `model`.

    Args:
        model: a quantised model without adapters.

    Returns:
        A new model without any quantised layer, its weights in the dtype of the unquantised ones.
    """
    # transformers marks a model as quantised in many places; only a new model of the same class carries none of them.
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, QUANTIZED_LAYERS):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, _dense_layer(layer))
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with seeded(0):
        dense: Any = type(model)(config)
    dense.to(dtype=model.dtype, device=model.device)
    dense.load_state_dict(twin.state_dict())
    # It is no part of the configuration, and a served model stops by the tokens that stand in it.
    dense.generation_config = copy.deepcopy(model.generation_config)
    ready: PreTrainedModel = dense
    return ready


def _dense_layer(layer: Linear4bit | Linear8bitLt) -> nn.Linear:
    weight = dequantized_weight(layer)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense.weight = nn.Parameter(weight)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone())
    return dense
