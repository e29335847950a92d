"""Each contraction equals the inner product with the weight gradient of autograd, one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from ippo_lightning.influence.contractions import Rows, bias_term, embedding_term, linear_term, scale_term
from ippo_lightning.influence.coverage import HookedModule, HookedParameter
from ippo_lightning.influence.hooks import episode_gradients
from ippo_lightning.influence.module_kinds import kind_of, parameter_gradient

EXACT = 1e-12  # float64, sums of fewer than a hundred products
SINGLE = 1e-6  # Gemma's norm multiplies by its weight in float32, so autograd's gradient is rounded to float32


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(1))


CASES = [
    (lambda: nn.Linear(4, 3), features(5, 6, 4)),
    (lambda: nn.Linear(3, 8), features(5, 6, 3)),
    (lambda: nn.Linear(4, 3), features(5, 4)),
    (lambda: nn.Linear(4, 3, bias=False), features(5, 2, 3, 4)),
    (lambda: Conv1D(3, 4), features(5, 6, 4)),
    (lambda: Conv1D(8, 4), features(5, 6, 4)),
    (lambda: nn.Embedding(7, 3), ids(5, 6)),
    (lambda: nn.Embedding(7, 3, padding_idx=2), ids(5, 6)),
    (lambda: BartScaledWordEmbedding(7, 3, 1, embed_scale=3.0), ids(5, 6)),
    (lambda: nn.LayerNorm(4, eps=0.1), features(5, 6, 4)),
    (lambda: nn.LayerNorm((6, 4)), features(5, 2, 6, 4)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), features(5, 4, 7, 8)),
    (lambda: nn.Conv2d(2, 3, (1, 3), padding=1, padding_mode="circular", bias=False), features(5, 2, 4, 5)),
    (lambda: nn.Conv1d(3, 2, 2, dilation=2), features(5, 3, 9)),
    (lambda: nn.GroupNorm(2, 4, eps=0.1), features(5, 4, 3, 2)),
    (lambda: nn.RMSNorm(4), features(5, 6, 4)),
    (lambda: nn.RMSNorm(4, eps=0.1), features(5, 6, 4)),
    (lambda: LlamaRMSNorm(4, eps=0.1), features(5, 6, 4)),
    (lambda: Gemma2RMSNorm(4, eps=0.1), features(5, 6, 4)),
]


@pytest.mark.parametrize(("build", "inputs"), CASES)
def test_a_contraction_equals_the_inner_product_with_the_gradient_of_autograd(build: object, inputs: Tensor) -> None:
    module = build().double()
    kind = kind_of(module)
    assert kind is not None
    tolerance = SINGLE if isinstance(module, Gemma2RMSNorm) else EXACT
    output_gradient = features(*module(inputs).shape, seed=2)
    for name, parameter in module.named_parameters():
        block = features(*parameter.shape, seed=3)
        expected = []
        for row in range(len(inputs)):
            output = module(inputs[row : row + 1])
            (gradient,) = torch.autograd.grad(output, parameter, output_gradient[row : row + 1])
            expected.append((gradient * block).sum())
        for rows in (Rows(careful=True), Rows(careful=False)):
            actual = kind.terms[name](module, inputs, output_gradient, block, rows=rows)
            torch.testing.assert_close(actual, torch.stack(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("build", "inputs"), CASES)
def test_the_derivative_of_a_contraction_is_the_gradient_of_each_row(build: object, inputs: Tensor) -> None:
    module = build().double()
    kind = kind_of(module)
    assert kind is not None
    tolerance = SINGLE if isinstance(module, Gemma2RMSNorm) else EXACT
    output_gradient = features(*module(inputs).shape, seed=2)
    for name, parameter in module.named_parameters():
        part = HookedParameter(name, kind.terms[name], (torch.ones_like(parameter.detach()),))
        entry = HookedModule("", module, (part,), kind.knows_tokens)
        formed = episode_gradients(entry, part, inputs, output_gradient)
        for row in range(len(inputs)):
            output = module(inputs[row : row + 1])
            (expected,) = torch.autograd.grad(output, parameter, output_gradient[row : row + 1])
            torch.testing.assert_close(formed[row], expected, rtol=tolerance, atol=tolerance)
        summed = parameter_gradient(module, name, inputs, output_gradient, like=parameter)
        torch.testing.assert_close(summed, formed.sum(dim=0), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", [lambda: nn.Linear(3, 8), lambda: nn.RMSNorm(4, eps=0.3), lambda: nn.LayerNorm(4)])
def test_fast_sums_in_float32_equal_careful_sums_in_float64(build: object) -> None:
    # RMSNorm is contracted in another way in float64 and in careful sums, so the cases above do not cover this one.
    module = build()
    inputs = features(5, 6, next(module.parameters()).shape[-1]).float()
    output_gradient = features(*module(inputs).shape, seed=2).float()
    kind = kind_of(module)
    assert kind is not None
    for name, parameter in module.named_parameters():
        block = features(*parameter.shape, seed=3).float()
        expected = kind.terms[name](
            module.double(), inputs.double(), output_gradient.double(), block.double(), rows=Rows(careful=True)
        )
        actual = kind.terms[name](module.float(), inputs, output_gradient, block, rows=Rows(careful=False))
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("careful", [True, False])
def test_terms_of_steps_sum_to_the_term_of_the_row(careful: bool) -> None:
    module, inputs, gradient = nn.Linear(4, 3).double(), features(2, 5, 4), features(2, 5, 3, seed=2)
    kind = kind_of(module)
    assert kind is not None
    for name, parameter in module.named_parameters():
        block = features(*parameter.shape, seed=3)
        by_step, by_row = (
            kind.terms[name](module, inputs, gradient, block, rows=Rows(keep=keep, careful=careful)) for keep in (2, 1)
        )
        assert by_step.shape == (2, 5)
        torch.testing.assert_close(by_step.sum(dim=1), by_row, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose2d(1, 1, 1),
        nn.InstanceNorm1d(3, affine=True),
        nn.Embedding(7, 3, max_norm=1.0),
        nn.Embedding(7, 3, scale_grad_by_freq=True),
        nn.Bilinear(2, 2, 2),
        nn.GRUCell(2, 2),
        nn.BatchNorm1d(3),
    ],
)
def test_modules_with_other_gradients_have_no_known_kind(module: nn.Module) -> None:
    assert kind_of(module) is None


@pytest.mark.parametrize(("narrow_output", "width"), [(True, 2), (False, 9)])
def test_a_nan_in_padding_contributes_nothing(narrow_output: bool, width: int) -> None:
    inputs, gradient, block = features(2, 3, 4), features(2, 3, width, seed=2), features(width, 4, seed=3)
    assert (width <= 4) is narrow_output
    gradient[:, 2] = 0.0
    expected = linear_term(inputs=inputs, output_gradient=gradient, block=block)
    poisoned = inputs.clone()
    poisoned[0, 2], poisoned[1, 2] = torch.nan, torch.inf
    assert torch.equal(linear_term(inputs=poisoned, output_gradient=gradient, block=block), expected)
    scale, square = features(4, seed=4), features(2, 3, 4, seed=5)
    square[:, 2] = 0.0
    assert torch.isfinite(scale_term(normalised=poisoned, output_gradient=square, block=scale)).all()


def test_a_nan_in_the_output_gradient_is_not_hidden() -> None:
    gradient = features(2, 3, 4)
    gradient[1, 0, 0] = torch.nan
    finite = [True, False]
    assert torch.isfinite(bias_term(output_gradient=gradient, block=features(4))).tolist() == finite
    linear = linear_term(inputs=features(2, 3, 5), output_gradient=gradient, block=features(4, 5))
    assert torch.isfinite(linear).tolist() == finite


@pytest.mark.parametrize("gradient_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_terms_are_summed_in_the_dtype_of_the_block(gradient_dtype: torch.dtype) -> None:
    # 4096 ones and 4096 times 2^-6: a sum in half precision stops growing long before the end.
    gradient = torch.cat([torch.ones(1, 4096, 1), torch.full((1, 4096, 1), 2.0**-6)], dim=1).to(gradient_dtype)
    ones = torch.ones_like(gradient)
    total = 4096 + 64.0
    assert bias_term(output_gradient=gradient, block=torch.ones(1)).item() == total
    assert linear_term(inputs=ones, output_gradient=gradient, block=torch.ones(1, 1)).item() == total
    looked_up = embedding_term(
        ids=torch.zeros(1, 8192, dtype=torch.long), output_gradient=gradient, block=torch.ones(2, 1), padding_index=None
    )
    assert looked_up.item() == total
    assert looked_up.dtype == torch.float32


def test_a_small_direction_is_not_flushed_to_zero_with_a_float16_gradient() -> None:
    gradient, inputs = torch.full((1, 4, 2), 0.5, dtype=torch.float16), torch.ones(1, 4, 2, dtype=torch.float16)
    score = linear_term(inputs=inputs, output_gradient=gradient, block=torch.full((2, 2), 2.0**-40))
    assert score.item() == 8 * 2.0**-40
