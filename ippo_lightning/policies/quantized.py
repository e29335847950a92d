"""All code about 4-bit weights: NF4 with double quantisation, from bitsandbytes.

Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ippo_lightning.policies.modes import seeded


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the settings of 4-bit NormalFloat weights with double quantisation.

    Args:
        compute_dtype: dtype in which the dequantised products are computed.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantization_device() -> dict[str, str]:
    """Return the device map that quantises on this process's own GPU, or on the CPU where there is none."""
    if torch.cuda.is_available():
        return {"": f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"}
    return {"": "cpu"}


def is_quantized(model: nn.Module) -> bool:
    """Tell whether any layer holds 4-bit weights.

    Args:
        model: any module.
    """
    return any(isinstance(module, Linear4bit) for module in model.modules())


def pin_weight_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights for inference on CPUs with AVX512-bf16.

    A repacked layer returns no input gradient and raises nothing, and going back to train mode does not undo it: one
    evaluation pass would spoil every later update.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def dequantized_weight(layer: Linear4bit) -> Tensor:
    """Return the weight a 4-bit layer computes with, as an ordinary matrix.

    Args:
        layer: a layer with quantised weights.

    Returns:
        Weight, shape [out_features, in_features], in the dtype the layer was loaded in.
    """
    quantized: Any = layer.weight
    weight: Tensor = dequantize_4bit(quantized.data, quantized.quant_state)
    return weight


def dense_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return an ordinary model that computes with the dequantised weights of `model`.

    Args:
        model: a 4-bit model without adapters.

    Returns:
        A new model without any 4-bit layer, its weights in the dtype of the unquantised ones.
    """
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, Linear4bit):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, _dense_layer(layer))
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with seeded(0):
        dense: Any = type(model)(config)
    dense.to(dtype=model.dtype, device=model.device)
    dense.load_state_dict(twin.state_dict())
    dense.generation_config = copy.deepcopy(model.generation_config)
    ready: PreTrainedModel = dense
    return ready


def _dense_layer(layer: Linear4bit) -> nn.Linear:
    weight = dequantized_weight(layer)
    with torch.device("meta"):
        dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense.weight = nn.Parameter(weight)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone())
    return dense
