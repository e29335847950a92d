"""The part `kernels` of benchmarks/gpu.py: attention with a mask, and heads that never hold all logits."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from ippo_lightning.maths.log_probs import token_log_probs
from ippo_lightning.policies.attention_kernels import is_finite_attention
from ippo_lightning.policies.head_blocks import BLOCK_ENTRIES, spans_of

if TYPE_CHECKING:
    from gpu_parts import Rows

BACKENDS = {
    "torch's choice": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WIDTHS = (128, 319, 320, 321)
"""Tokens of a row; a run in bf16-mixed ended at a batch of 320 (see `attention_kernels`)."""
ROUNDS = 5


def kernels(options: argparse.Namespace, rows: Rows) -> None:
    """Try attention first: it takes a second, and later parts depend on it."""
    attention(options, rows)
    heads(options, rows)


def attention(options: argparse.Namespace, rows: Rows) -> None:
    """For which row lengths a kernel gives padded rows a gradient that is no number."""
    device = torch.device(options.device)
    for name, backend in BACKENDS.items():
        broken = []
        try:
            for width in WIDTHS:
                # Forward and backward take the same kernel, so the choice stands around both.
                with sdpa_kernel(backend) if backend is not None else torch.enable_grad():
                    broken += [] if is_finite_attention(width, device, torch.bfloat16) else [str(width)]
            said = f"NaN for rows of {', '.join(broken)} tokens" if broken else f"finite for rows of {WIDTHS}"
            rows.add(f"attention with a mask, {name}", value=said)
        except RuntimeError as error:  # no such kernel on this device
            rows.fail(f"attention with a mask, {name}", error)


def heads(options: argparse.Namespace, rows: Rows) -> None:
    """Forward and backward of log-probs behind a frozen head: ours, and the fused kernels that are installed."""
    tokens, width, vocabulary = (64, 32, 512) if options.tiny else (8192, 2048, 131072)
    device = torch.device(options.device)
    dtype = torch.float32 if options.tiny else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(1, tokens, width, device=device, dtype=dtype, generator=generator)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype, generator=generator) / width**0.5
    ids = torch.randint(vocabulary, (1, tokens), device=device, generator=generator)
    exact = _gradient(_all_logits, hidden, weight, ids) if options.tiny else _gradient(_in_blocks, hidden, weight, ids)
    for name, way in {"all logits": _all_logits, "ours, in blocks": _in_blocks, **_fused(rows)}.items():
        try:
            _add_way(name, way, (hidden, weight, ids), exact, options, rows)
        except Exception as error:  # a kernel of another package may fail in any way
            rows.fail(f"head, {name}", error)
        gc.collect()


OfHidden = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes hidden states [1, tokens, width], the head's weight and ids; returns negative log-likelihoods [1, tokens]."""


def _add_way(
    name: str,
    way: OfHidden,
    inputs: tuple[Tensor, Tensor, Tensor],
    exact: Tensor,
    options: argparse.Namespace,
    rows: Rows,
) -> None:
    found = _gradient(way, *inputs)  # warms up, and compiles
    error = float((found - exact).norm() / exact.norm())
    is_gpu = options.device == "cuda"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if is_gpu else 0
    start = time.perf_counter()
    for _ in range(ROUNDS):
        _gradient(way, *inputs)
    if is_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / ROUNDS
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if is_gpu else float("nan")
    tokens = inputs[0].shape[1]
    rows.add(
        f"head, {name}",
        value=f"gradient differs by {error:.1e}",
        seconds=seconds,
        gib=peak,
        tokens_per_second=tokens / seconds,
    )


def _gradient(way: OfHidden, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Return the gradient of the mean of all losses for the hidden states; the head is frozen, as under LoRA."""
    leaf = hidden.detach().requires_grad_()
    return torch.autograd.grad(way(leaf, weight, ids).float().mean(), leaf)[0].float()


def _all_logits(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(linear(hidden, weight)[0].float(), ids[0], reduction="none")[None]


def _in_blocks(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """As `head_in_blocks` does behind a model."""

    def of_block(block: Tensor, chosen: Tensor) -> Tensor:
        return -token_log_probs(logits=linear(block, weight), ids=chosen, temperature=1.0)

    spans = spans_of(*ids.shape, tokens=max(BLOCK_ENTRIES // len(weight), 1))
    parts = [checkpoint(of_block, hidden[span], ids[span], use_reentrant=False) for span in spans]
    return torch.cat(parts, dim=1)


def _fused(rows: Rows) -> dict[str, OfHidden]:
    """Return the fused kernels that are installed; a row names each one that is not."""
    found: dict[str, OfHidden] = {}
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        # It makes its gradient in the forward, for one loss: no weights per token, and no scores per episode.
        found["liger-kernel"] = lambda hidden, weight, ids: liger_fused_linear_cross_entropy(hidden[0], weight, ids[0])
    except Exception as error:
        rows.fail("head, liger-kernel", error)
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = lambda hidden, weight, ids: linear_cross_entropy(
            hidden, weight, ids, reduction="none"
        )
    except Exception as error:
        rows.fail("head, cut-cross-entropy", error)
    return found
