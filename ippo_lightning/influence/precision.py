"""How exactly a model computes."""

from __future__ import annotations

import torch
from torch import nn

HALVES = (torch.bfloat16, torch.float16)


def coarsest_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the half or 8-bit precision that a forward of the model passes through; None where it is finer throughout.

    What reaches a trainable module can be float32 and still be coarse: adapters in float32 stand on a bfloat16 base.

    Args:
        model: any module; weights, the `compute_dtype` of 4-bit layers and the caller's autocast count.
    """
    found: set[torch.dtype | None] = {parameter.dtype for parameter in model.parameters()}
    found |= {getattr(module, "compute_dtype", None) for module in model.modules()}
    devices = {parameter.device.type for parameter in model.parameters()}
    found |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
    for dtype in (*HALVES, torch.int8):
        if dtype in found:
            return dtype
    return None


def is_coarse(model: nn.Module) -> bool:
    """Return whether rounding reaches about 1e-2: half or 8-bit precision, or TF32, takes part.

    Args:
        model: any module.
    """
    return coarsest_dtype(model) is not None or torch.get_float32_matmul_precision() != "highest"
