"""The direction must be the plain gradient of the mean loss, and taking it must leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import target_gradient


def a_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1)).double()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0], [2, 2, 2]])
def test_it_is_the_gradient_of_the_weighted_mean_loss(weights: list[float] | None) -> None:
    model = a_model()
    direction = target_gradient(model, mean_square, iter(batches()), weights=weights)
    factors = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64)
    oracle = copy.deepcopy(model).eval()
    losses = torch.stack([mean_square(oracle, batch) for batch in batches()])
    ((factors * losses).sum() / factors.sum()).backward()
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(direction[name], parameter.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_it_is_summed_in_float32_at_least(dtype: torch.dtype, expected: torch.dtype) -> None:
    model = nn.Linear(1, 1, bias=False).to(dtype)
    # 1 + 2^-9 twenty times over is lost in bfloat16 sums, exact in float32 ones.
    steps = [torch.ones(1, 1, dtype=dtype)] + [torch.full((1, 1), 2.0**-9, dtype=dtype)] * 20
    direction = target_gradient(model, lambda m, b: m(b).sum(), steps)
    assert direction["weight"].dtype == expected
    assert direction["weight"].item() * 21 == pytest.approx(1 + 20 * 2.0**-9, rel=1e-6)


def test_frozen_parameters_have_no_block_and_unreached_ones_a_zero_block() -> None:
    model = a_model()
    model[0].bias.requires_grad_(False)
    direction = target_gradient(model, lambda m, b: m[0](b).square().mean(), batches())
    assert list(direction) == ["0.weight", "3.weight", "3.bias"]
    assert bool(direction["0.weight"].count_nonzero())
    assert not bool(direction["3.weight"].count_nonzero())
    assert not any(block.requires_grad for block in direction.values())


def test_a_sparse_embedding_gives_a_dense_block() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    block = target_gradient(table, lambda m, b: m(b).sum(), [torch.tensor([1, 1, 4])])["weight"]
    assert block.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [1, 1]]


OUTSIDE = batches()  # tensors made in inference mode can take no part in a backward


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_it_leaves_no_trace(failing: bool, inference: bool) -> None:
    model = a_model()
    mean_square(model, batches()[0]).backward()
    model[1].eval()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    calls = []

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        calls.append(torch.rand(1))
        if failing and len(calls) == 2:
            raise KeyError("the middle")
        return mean_square(module, batch)

    with torch.inference_mode(inference):
        if failing:
            with pytest.raises(KeyError):
                target_gradient(model, loss, OUTSIDE)
            assert len(calls) == 2
        else:
            target_gradient(model, loss, OUTSIDE)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))


def nan_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch) * torch.nan


@pytest.mark.parametrize(
    ("loss", "count", "weights", "message"),
    [
        (mean_square, 0, None, "expected at least one batch"),
        (mean_square, 3, [0.0, 0.0, 0.0], "weights sum to 0"),
        (mean_square, 3, [1.0, 1.0], "weights: got 2 for more batches"),
        (mean_square, 3, [1.0] * 4, "weights: got 4 for 3 batches"),
        (mean_square, 3, [1.0, -1.0, 1.0], "weights: got -1.0 for batch 1"),
        (nan_loss, 3, None, r"gradient for '0\.weight' holds NaN"),
        (lambda m, b: m(b), 3, None, r"loss: returned shape \(5, 1\), expected a 0-dim tensor"),
        (lambda m, b: 0.0, 3, None, "loss: returned float"),
        (lambda m, b: b.sum(), 3, None, "without a graph"),
    ],
)
def test_a_mistake_is_explained(loss: object, count: int, weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_gradient(a_model(), loss, batches(count), weights=weights)


def test_a_frozen_model_is_explained() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        target_gradient(a_model().requires_grad_(False), mean_square, batches())
