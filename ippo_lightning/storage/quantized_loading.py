"""Loading 4-bit and 8-bit weights of bitsandbytes, of a policy and of a reward model alike.

Sources: Dettmers et al. 2023, QLoRA, arXiv 2305.14314 (nf4, fp4, double quantisation); Dettmers et al. 2022,
LLM.int8(), arXiv 2208.07339 (int8).
"""

from __future__ import annotations

import os
from types import MethodType
from typing import Literal

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

Quantization = Literal["nf4", "fp4", "int8"]


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
