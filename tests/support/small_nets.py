"""A small network with the difficult parts of real ones, and one loss per row, for tests of the influence room."""

from __future__ import annotations

import torch
from tiny_language_models import scrambled
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Has an in-place activation after a hooked module, dropout, buffers, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.activation = nn.ReLU(inplace=True)
        self.shared = nn.Linear(6, 6, bias=False)
        self.dropout = nn.Dropout(0.4)
        self.norm = nn.LayerNorm(6)
        self.batch_norm = nn.BatchNorm1d(6, affine=False)
        self.last = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.activation(self.first(inputs))
        hidden = self.dropout(self.shared(torch.tanh(self.shared(hidden))))
        return self.last(self.batch_norm(self.norm(hidden))).squeeze(-1)


def a_net(module: nn.Module | None = None) -> nn.Module:
    return scrambled((module or Net()).double())


def a_batch(episodes: int = 6, *, seed: int = 1, tokens: tuple[int, ...] = ()) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(episodes, *tokens, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(episodes, generator=generator, dtype=torch.float64)


def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return (model(inputs).flatten(1).mean(1) if inputs.ndim > 2 else model(inputs) - targets).square()


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "versions": [parameter._version for parameter in model.parameters()],
        "gradients": [parameter.grad.clone() for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def dirty_net() -> nn.Module:
    """Return a model as in the middle of training: with gradients, a frozen part, mixed modes and another hook."""
    model = a_net()
    model.train()
    model.norm.eval()
    squared_errors(model, a_batch()).sum().backward()
    model.norm.requires_grad_(False)
    model.last.register_forward_hook(lambda *_: None)
    return model
