"""A kernel of attention whose gradient is wrong is found and turned off, before a run ends by it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ippo_lightning.policies.attention_kernels import (
    broken_widths,
    leave_out_broken_kernel,
    require_right_attention,
)

CPU = torch.device("cpu")
attention = functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def kernels_as_before() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def breaks(monkeypatch: pytest.MonkeyPatch, condition: Callable[[Tensor], bool]) -> None:
    """Let attention give a gradient of NaN to queries for which a condition is true."""

    def broken(query: Tensor, *others: Any, **options: Any) -> Tensor:
        if condition(query):
            query = query.clone()
            query.register_hook(lambda gradient: gradient * math.nan)
        return attention(query, *others, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", broken)


def as_cudnn(query: Tensor) -> bool:
    """The fault of torch 2.11 to 2.13 on an H100."""
    return torch.backends.cuda.cudnn_sdp_enabled() and query.shape[2] % 128 == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_of_this_machine_is_finite(dtype: torch.dtype) -> None:
    assert broken_widths(CPU, dtype) == []


def test_the_kernel_of_cudnn_is_turned_off_where_its_gradient_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, as_cudnn)
    with pytest.warns(UserWarning, match=r"NaN on cpu in bfloat16 for rows of 64, 192 tokens, by cuDNN's kernel"):
        leave_out_broken_kernel(CPU, torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leave_out_broken_kernel(CPU, torch.float16)


def test_a_fault_of_another_kernel_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, lambda query: True)
    with pytest.warns(UserWarning, match=r"rows of 61, 64, 192 tokens; set policy\.attn_implementation: eager"):
        leave_out_broken_kernel(CPU, torch.bfloat16)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_trial_runs_wherever_the_first_pass_is_and_moves_no_random_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, as_cudnn)
    before = torch.get_rng_state()
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            assert broken_widths(CPU, torch.bfloat16) == [64, 192]
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_tried_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, as_cudnn)
    require_right_attention(CPU)
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("width", [64, 192, 320, 319])
def test_gradients_of_padded_rows_are_finite_on_a_gpu(width: int) -> None:
    """Two rows padded on the left, scored through a policy in bf16-mixed; 320 is the width that ended a run."""
    from training_parts import TINY, tiny_policy

    config = {**TINY, "hidden_size": 128, "max_position_embeddings": 512}
    policy = tiny_policy(config=config).cuda()
    steps = width // 2
    prompt_mask = torch.ones(2, width - steps, dtype=torch.bool, device="cuda")
    prompt_mask[1, : (width - steps) // 2] = False
    prompt = torch.full_like(prompt_mask, 5, dtype=torch.long)
    response = torch.full((2, steps), 6, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = policy(prompt, prompt_mask, response, torch.ones_like(response, dtype=torch.bool))
    output.log_probs.sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
