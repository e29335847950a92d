"""The gradient of each parameter from its own rows, against sums of plain backwards, one row at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import a_batch as net_batch
from small_nets import a_net, squared_errors
from tiny_language_models import a_batch, episode_losses, language_model, with_lora
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import CoverageError, RowShare, gradients_of_rows
from ippo_lightning.records.row_bands import row_band

EXACT = 1e-8  # float64, but the models' norms and softmax compute in float32, with the same formula on both sides
SINGLE = 1e-5  # Gemma's norm multiplies by its weight in float32, so autograd's gradient is rounded to float32
HALF = 2e-2  # bfloat16 has 8 bits, and the order of the sums differs
ROWS = 5


def shares_of(model: nn.Module, *, leave: int = 3, rows: int = ROWS) -> dict[str, RowShare]:
    """Rows of its own for each parameter but every `leave`-th."""
    generator = torch.Generator().manual_seed(7)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {
        name: RowShare(torch.rand(rows, generator=generator) < 0.6, 1.0 + number / 8)
        for number, name in enumerate(names)
        if number % leave
    }


def by_definition(model: nn.Module, losses: Any, batch: Any, shares: dict[str, RowShare]) -> dict[str, Tensor]:
    """Sum the gradients of single rows, without code of the library."""
    model = copy.deepcopy(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for row in range(ROWS):
        found = torch.autograd.grad(losses(model, batch)[row], list(trainable.values()), allow_unused=True)
        for name, gradient in zip(trainable, found, strict=True):
            share = shares.get(name, RowShare(torch.ones(ROWS, dtype=torch.bool)))
            if gradient is not None and share.keep[row]:
                total[name] += share.scale * gradient
    return total


def made(model: nn.Module, losses: Any, batch: Any, shares: dict[str, RowShare]) -> dict[str, Tensor]:
    model.zero_grad()
    with gradients_of_rows(model, shares):
        losses(model, batch).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, allowed: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        atol = allowed * max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("kind", ["full", "tied", "lora", "checkpointing"])
def test_each_parameter_gets_the_gradient_of_its_own_rows(family: str, kind: str) -> None:
    model = language_model(family, tied=kind == "tied")
    if kind == "lora":
        model = with_lora(model, family)
    model.eval()  # no dropout, whose rows would differ from call to call
    if kind == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            module.training = getattr(module, "gradient_checkpointing", False)
    batch, hooks = a_batch(ROWS, left_padding=False), num_hooks(model)
    shares = shares_of(model)
    expected = by_definition(model, episode_losses, batch, shares)
    allowed = SINGLE if family == "gemma2" else EXACT
    assert_close(made(model, episode_losses, batch, shares), expected, allowed=allowed)
    full = by_definition(model, episode_losses, batch, {})
    assert any(not torch.allclose(full[name], expected[name]) for name in shares), "the rows matter"
    assert all(p.requires_grad for name, p in model.named_parameters() if name in shares)
    assert num_hooks(model) == hooks


def test_a_module_that_is_called_twice_and_a_tied_one_add_up_their_calls() -> None:
    model = a_net()
    model.eval()
    batch = net_batch(ROWS)
    shares = {name: share for name, share in shares_of(model).items() if "batch_norm" not in name}
    assert any("shared" in name for name in shares)
    expected = by_definition(model, squared_errors, batch, shares)
    assert_close(made(model, squared_errors, batch, shares), expected, allowed=EXACT)


def test_other_parameters_keep_their_gradient_bit_for_bit_and_rows_that_all_count_change_nothing_else() -> None:
    model, batch = language_model("llama", dtype=torch.float32), a_batch(ROWS, dtype=torch.float32)
    plain = made(model, episode_losses, batch, {})
    chosen = "model.layers.0.mlp.up_proj.weight"
    few = made(model, episode_losses, batch, {chosen: RowShare(torch.arange(ROWS) < 2)})
    assert all(torch.equal(plain[name], few[name]) for name in plain if name != chosen)
    assert not torch.allclose(plain[chosen], few[chosen])
    everyone = {name: RowShare(torch.ones(ROWS, dtype=torch.bool)) for name in plain}
    assert_close(made(model, episode_losses, batch, everyone), plain, allowed=1e-5)


def test_a_parameter_without_rows_has_a_gradient_of_zero_even_if_the_rows_are_not_finite() -> None:
    model, batch = language_model("llama"), a_batch(ROWS)
    batch.factors[1] = torch.nan
    keep = torch.arange(ROWS) != 1
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shares = {name: RowShare(keep) for name in names}
    shares[names[3]] = RowShare(torch.zeros(ROWS, dtype=torch.bool))
    found = made(model, episode_losses, batch, shares)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
    assert not found[names[3]].any()


def test_gradients_add_up_over_micro_batches() -> None:
    model, batch = language_model("llama"), a_batch(ROWS)
    shares = shares_of(model)
    expected = by_definition(model, episode_losses, batch, shares)
    model.zero_grad()
    for rows in ([3, 0], [4, 1, 2]):
        with gradients_of_rows(model, {name: RowShare(keep[rows], scale) for name, (keep, scale) in shares.items()}):
            episode_losses(model, batch.rows(rows)).sum().backward()
    assert_close({name: p.grad for name, p in model.named_parameters()}, expected, allowed=EXACT)


def test_a_band_of_rows_finds_its_own_rows() -> None:
    layer = nn.Linear(3, 2).double()
    inputs, keep = torch.randn(ROWS, 4, 3, dtype=torch.float64), torch.tensor([True, False, True, True, False])
    with gradients_of_rows(layer, {"weight": RowShare(keep)}):
        total = torch.zeros((), dtype=torch.float64)
        for first in (0, 2, 4):
            with row_band(first):
                total = total + layer(inputs[first : first + 2]).square().sum()
        total.backward()
    expected = torch.autograd.grad(layer(inputs[keep]).square().sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0, atol=1e-12)


def test_under_autocast_the_gradients_are_those_of_autograd_up_to_its_rounding() -> None:
    model, batch = language_model("llama", dtype=torch.float32), a_batch(ROWS, dtype=torch.float32)
    shares = shares_of(model)

    def losses(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return episode_losses(model, batch)

    expected = by_definition(model, losses, batch, shares)
    found = made(model, losses, batch, shares)
    assert_close(found, expected, allowed=HALF)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_the_model_is_whole_again_after_an_error() -> None:
    model, batch = language_model("llama"), a_batch(ROWS)
    hooks = num_hooks(model)

    def fails(*_: Any) -> None:
        raise ValueError("in the layer")

    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fails)
    shares = shares_of(model, leave=1000)
    with pytest.raises(ValueError, match="in the layer"), gradients_of_rows(model, shares):
        episode_losses(model, batch)
    handle.remove()
    assert all(p.requires_grad for p in model.parameters())
    assert num_hooks(model) == hooks


def test_what_cannot_be_split_by_row_is_refused(tmp_path: Path) -> None:
    keep = RowShare(torch.ones(ROWS, dtype=torch.bool))
    with (
        pytest.raises(UserError, match="shares: 'x' is no parameter of the model"),
        gradients_of_rows(nn.Linear(2, 2), {"x": keep}),
    ):
        pass
    with pytest.raises(CoverageError, match=r"of type Bilinear, as 'weight', has a gradient that cannot be split"):
        gradients_of_rows(nn.Bilinear(2, 2, 2), {"weight": keep}).__enter__()
    compiled = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    with pytest.raises(UserError, match="model: '0' is compiled"), gradients_of_rows(compiled, {}):
        pass
    layer = nn.Linear(2, 2)
    with gradients_of_rows(layer, {"weight": keep}), pytest.raises(CoverageError, match="ran on a batch of 3 rows"):
        layer(torch.ones(3, 2)).sum().backward()
