"""Products of two gradients of the same row, against plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import NonFiniteScoreError, row_products

FLOAT64 = 1e-12


class Shared(nn.Module):
    """A layer that is used twice, a norm, and an embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        log_probs: Tensor = self.head(self.norm(self.twice(self.twice(self.embedding(ids)).tanh()))).log_softmax(-1)
        return log_probs


def first_loss(module: Any, ids: Tensor) -> Tensor:
    losses: Tensor = module(ids)[..., 0].mean(dim=1)
    return losses


def second_loss(module: Any, ids: Tensor) -> Tensor:
    losses: Tensor = module(ids)[..., 1].square().sum(dim=1)
    return losses


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
@pytest.mark.parametrize("others", [None, second_loss], ids=["squares", "products"])
def test_each_product_is_that_of_plain_autograd(others: Any, method: Any) -> None:
    module = Shared()
    ids = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(1))
    parameters = dict(module.named_parameters())
    metric = {name: torch.rand_like(p) for name, p in parameters.items() if name != "norm.bias"}
    found = row_products(module, first_loss, others, [ids[:4], ids[4:]], metric, method=method)
    for row in range(len(ids)):
        one, other = (
            torch.autograd.grad(loss(module, ids)[row], [parameters[name] for name in metric])
            for loss in (first_loss, others or first_loss)
        )
        parts = [(block * a * b).sum() for block, a, b in zip(metric.values(), one, other, strict=True)]
        torch.testing.assert_close(found.scores[0, row], torch.stack(parts).sum(), rtol=0, atol=FLOAT64)
        for name, part in zip(metric, parts, strict=True):
            torch.testing.assert_close(found.by_parameter[name][0, row], part, rtol=0, atol=FLOAT64)
    assert all(p.grad is None and p.requires_grad for p in parameters.values())


def test_what_cannot_be_computed_is_refused_or_named() -> None:
    module, ids = Shared(), torch.zeros(3, 2, dtype=torch.long)
    metric = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    with pytest.raises(UserError, match="method: got 'forward', expected hooks or per_episode"):
        row_products(module, first_loss, None, [ids], metric, method="forward")
    assert row_products(module, first_loss, None, [], metric).scores.shape == (1, 0)

    def broken(module: Any, ids: Tensor) -> Tensor:
        return first_loss(module, ids) * torch.tensor([1.0, torch.nan, 1.0])

    with pytest.raises(NonFiniteScoreError) as caught:
        row_products(module, first_loss, broken, [ids, ids], metric)
    assert list(caught.value.positions) == [1]


def test_losses_without_a_graph_have_products_of_zero() -> None:
    module, ids = Shared(), torch.zeros(3, 2, dtype=torch.long)
    metric = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    found = row_products(module, first_loss, lambda module, ids: torch.zeros(3), [ids], metric)
    assert found.scores.tolist() == [[0.0, 0.0, 0.0]]
