"""All code about 4-bit and 8-bit weights, from bitsandbytes.

Sources: Dettmers et al. 2023, QLoRA, arXiv 2305.14314 (nf4, fp4, double quantisation); Dettmers et al. 2022,
LLM.int8(), arXiv 2208.07339 (int8).
"""

from __future__ import annotations

import copy
import os
from types import MethodType
from typing import Any, Literal, cast

import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ippo_lightning.policies.contexts import seeded

Quantization = Literal["nf4", "fp4", "int8"]
QUANTIZED_LAYERS = (Linear4bit, Linear8bitLt)


def quantization_config(
    kind: Quantization, *, double_quantization: bool, compute_dtype: torch.dtype
) -> BitsAndBytesConfig:
    """Return the settings with which transformers quantises a model while loading it.

    Args:
        kind: 4-bit NormalFloat, 4-bit float, or 8-bit integers with outliers apart.
        double_quantization: quantise the scales of 4-bit blocks too; it saves 0.4 bits per weight.
        compute_dtype: dtype in which products with 4-bit weights are computed.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantization_device() -> dict[str, str]:
    """Return the device map that quantises on this process's own GPU, or on the CPU if there is none."""
    if torch.cuda.is_available():
        # The policy is built before Fabric chooses a device; without LOCAL_RANK all ranks would load onto GPU 0.
        # The key "" is the full model: nothing is spread over several devices.
        return {"": f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"}
    return {"": "cpu"}


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


def pin_layers(model: nn.Module) -> None:
    """Make quantised layers compute the same in evaluation mode as in train mode.

    On CPUs with AVX512-bf16, bitsandbytes repacks 4-bit weights for inference. A repacked layer returns no input
    gradient and raises no error, and train mode does not undo it: after one evaluation pass every update would be
    wrong. An 8-bit layer rounds its products differently in evaluation mode, so policy and reference would differ
    before the first step.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.forward = MethodType(_forward_as_in_training, module)  # type: ignore[method-assign]


def _forward_as_in_training(layer: Linear8bitLt, inputs: Tensor) -> Tensor:
    mode, layer.training = layer.training, True
    try:
        # From the class: the layer's own attribute `forward` is this function.
        outputs: Tensor = type(layer).forward(layer, inputs)
        return outputs
    finally:
        layer.training = mode


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
