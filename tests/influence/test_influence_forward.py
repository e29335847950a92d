"""Forward-mode scores: exact, also per token, without side effects, refused if a kernel would lose the derivative."""

from __future__ import annotations

import pytest
import small_nets
import torch
from tiny_language_models import (
    a_batch,
    a_direction,
    episode_losses,
    language_model,
    relative_error,
    scores_by_definition,
    token_losses,
    with_lora,
)
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import ChecksumError, influence_scores, token_scores
from ippo_lightning.influence.coverage import active_blocks
from ippo_lightning.influence.forward import forward_derivative

EXACT = {torch.float64: 1e-8, torch.float32: 1e-5}
"""Tolerance as a fraction of the largest score, as for every exact method."""
FLOAT_NORMS = 1e-6
"""Tolerance for float64 models with norms in float32, where forward and backward round differently; measured 6e-7."""
FAMILIES = ["llama", "qwen2", "gemma2", "phi3", "gpt2"]


@pytest.mark.parametrize("dtype", list(EXACT), ids=str)
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_equals_the_definition(family: str, adapted: bool, dtype: torch.dtype) -> None:
    model = language_model(family, dtype=dtype)
    model = with_lora(model, family) if adapted else model
    batch, direction = a_batch(dtype=dtype, left_padding=family != "gemma2"), a_direction(model)
    with torch.no_grad():
        episode_losses(model.eval(), batch)  # as in a run, where a rollout comes first
    scores = influence_scores(model, episode_losses, [batch], direction, method="forward", checksum_batches=-1)
    allowed = EXACT[dtype] if family == "gpt2" else max(EXACT[dtype], FLOAT_NORMS)
    assert relative_error(scores, scores_by_definition(model, episode_losses, batch, direction)) <= allowed


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_scores_are_exact_with_tied_weights_and_eager_attention(family: str) -> None:
    model = language_model(family, tied=True, attention="eager")
    batch, direction = a_batch(left_padding=False), a_direction(model)
    scores = influence_scores(model, episode_losses, [batch], direction, method="forward")
    assert relative_error(scores, scores_by_definition(model, episode_losses, batch, direction)) <= FLOAT_NORMS


def test_scores_are_exact_with_a_module_called_twice_and_with_checkpointed_layers() -> None:
    net, pair = small_nets.a_net(), small_nets.a_batch()
    direction = a_direction(net)
    by_forward, by_definition = (
        influence_scores(net, small_nets.squared_errors, [pair], direction, method=method)
        for method in ("forward", "per_episode")
    )
    torch.testing.assert_close(by_forward, by_definition, rtol=1e-10, atol=1e-10)
    model, batch = language_model("llama"), a_batch()
    direction = a_direction(model)
    plain = influence_scores(model, episode_losses, [batch], direction, method="forward")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    again = influence_scores(model, episode_losses, [batch], direction, method="forward")
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-8)


def test_scores_of_tokens_are_derivatives_of_their_terms_and_sum_to_the_score_of_the_episode() -> None:
    model, batches = language_model("llama"), [a_batch(3, seed=1), a_batch(2, seed=2)]
    direction = a_direction(model)
    tokens = token_scores(model, token_losses, batches, direction)
    total = influence_scores(model, episode_losses, batches, direction, method="forward")
    assert [part.shape for part in tokens] == [(3, 9), (2, 9)]
    torch.testing.assert_close(torch.cat([part.sum(dim=1) for part in tokens]), total, rtol=1e-9, atol=1e-10)
    first = torch.autograd.grad(token_losses(model, batches[0])[1, 4], list(model.parameters()), allow_unused=True)
    pairs = zip(first, model.named_parameters(), strict=True)
    expected = sum((gradient * direction[name]).sum() for gradient, (name, _) in pairs if gradient is not None)
    torch.testing.assert_close(tokens[0][1, 4], expected, rtol=1e-5, atol=1e-6)


def test_the_value_of_the_function_is_returned_with_its_derivative() -> None:
    model, batch = language_model("llama"), a_batch()
    value, _ = forward_derivative(
        model.eval(), episode_losses, batch, active_blocks(model, a_direction(model)), dtype=torch.float64
    )
    torch.testing.assert_close(value, episode_losses(model, batch).detach(), rtol=1e-6, atol=1e-8)
    assert not value.requires_grad


@pytest.mark.parametrize("fails", [False, True], ids=["without error", "with an error in between"])
def test_afterwards_the_model_is_as_before(fails: bool) -> None:
    model = small_nets.dirty_net()
    direction = a_direction(model)
    before, parameters = small_nets.snapshot(model), list(model.named_parameters())

    def losses(module: nn.Module, batch: small_nets.Batch) -> Tensor:
        found = small_nets.squared_errors(module, batch)
        if fails:
            raise KeyboardInterrupt
        return found

    if fails:
        with pytest.raises(KeyboardInterrupt):
            influence_scores(model, losses, [small_nets.a_batch()], direction, method="forward")
    else:
        influence_scores(model, losses, [small_nets.a_batch()], direction, method="forward")
    torch.testing.assert_close(small_nets.snapshot(model), before, rtol=0, atol=0)
    for (name, parameter), (name_now, now) in zip(parameters, model.named_parameters(), strict=True):
        assert name == name_now
        assert parameter is now


class Linear4bit(nn.Linear):
    """Has the class name of a quantised layer."""


class LosesTangents(nn.Module):
    """Computes a value outside torch, so its tangent is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if not torch.is_grad_enabled():
            hidden = hidden + (torch.from_numpy(hidden.detach().clone().numpy()) - hidden)
        return self.last(torch.tanh(hidden)).squeeze(-1)


def test_the_checksum_finds_a_lost_tangent() -> None:
    model = small_nets.a_net(LosesTangents())
    with pytest.raises(ChecksumError):
        influence_scores(model, small_nets.squared_errors, [small_nets.a_batch()], a_direction(model), method="forward")


def test_the_error_about_a_kernel_that_loses_the_derivative_names_it() -> None:
    quantised = nn.Sequential(nn.Linear(4, 4), Linear4bit(4, 1))
    with pytest.raises(UserError, match="quantised layer '1'; use 'hooks'"):
        influence_scores(
            quantised, lambda m, b: m(b)[:, 0], [torch.ones(2, 4)], a_direction(quantised), method="forward"
        )
    fused = language_model("llama")
    fused.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="attn_implementation='flash_attention_2'"):
        influence_scores(fused, episode_losses, [a_batch()], a_direction(fused), method="forward")
