"""Attention kernels of a GPU are tried before the first pass, and one with a wrong gradient is turned off.

Rows of a pass have different lengths, so attention gets a mask, and in the padding on the left a query attends to
nothing. torch chooses among several kernels by device, precision and shape. With torch 2.11 to 2.13 on an H100 it
chooses cuDNN's for bfloat16 with a mask; there the gradient of the queries is NaN if the row is 64, 192, 320, ...
tokens long and a query's scores are all very low. The loss is finite: a run ends at the first batch of such a width.
Source: pytorch/pytorch#196678 (the fault), huggingface/trl#7181 (a training run that it ended).
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

_WIDTHS = (61, 64, 192)
"""Row lengths that are tried: inside a tile of a kernel, at its end, and beside the middle of a wider one."""
_HEAD_WIDTH = 64
_LOW = -120.0  # a score whose exponential is 0 in float32, and that of its negative infinite


@cache
def require_right_attention(device: torch.device) -> None:
    """Turn cuDNN's attention off in this process if its gradient is wrong on a device; tried once per device.

    Costs a few milliseconds on a GPU, and nothing on a CPU, where there is no such choice.

    Args:
        device: of the model.
    """
    if device.type != "cuda":
        return
    for dtype in (torch.bfloat16, torch.float16):
        leave_out_broken_kernel(device, dtype)


def leave_out_broken_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Turn cuDNN's attention off if a gradient is not finite; warn if that does not help.

    Args:
        device: any.
        dtype: of queries, keys and values.
    """
    broken = broken_widths(device, dtype)
    if not broken:
        return
    name = str(dtype).removeprefix("torch.")
    found = f"policy: torch {torch.__version__} gives attention a gradient of NaN on {device} in {name} for rows of "
    found += f"{', '.join(map(str, broken))} tokens"
    if torch.backends.cuda.cudnn_sdp_enabled():
        torch.backends.cuda.enable_cudnn_sdp(False)
        if not broken_widths(device, dtype):
            warnings.warn(f"{found}, by cuDNN's kernel; that kernel is turned off in this process", stacklevel=2)
            return
        torch.backends.cuda.enable_cudnn_sdp(True)
    warnings.warn(f"{found}; set policy.attn_implementation: eager, or train in float32", stacklevel=2)


def broken_widths(device: torch.device, dtype: torch.dtype) -> list[int]:
    """Return the row lengths for which attention, or its gradient, is not finite.

    Args:
        device: any.
        dtype: of queries, keys and values.
    """
    # Whatever is around the first pass of a model: no gradients at a rollout, an autocast to another precision.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        return [width for width in _WIDTHS if not is_finite_attention(width, device, dtype)]


def is_finite_attention(width: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether attention and its gradient are finite for two rows: one with low scores, one padded on the left.

    Args:
        width: tokens of a row.
        device: any.
        dtype: of queries, keys and values.
    """
    # No random numbers: this must not move the streams of a run.
    steps = torch.arange(width * _HEAD_WIDTH, device=device).view(1, 1, width, _HEAD_WIDTH)
    content = (steps * 0.37).sin().expand(2, 1, -1, -1) * 0.1
    queries, keys, values = (content.roll(shift, dims=2).clone() for shift in (0, 1, 2))
    queries[0, ..., 0], keys[0, ..., 0] = 1.0, _LOW * _HEAD_WIDTH**0.5
    query, key, value = (part.to(dtype).requires_grad_() for part in (queries, keys, values))
    mask = torch.ones(width, width, dtype=torch.bool, device=device).tril().repeat(2, 1, 1, 1)
    padding = width // 2
    mask[1, ..., :padding] = False
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # As in a model: no loss depends on what stands in padding.
    upstream = torch.ones_like(out)
    upstream[1, :, :padding] = 0.0
    found: list[Tensor] = [out, *torch.autograd.grad(out, (query, key, value), upstream)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in found)
