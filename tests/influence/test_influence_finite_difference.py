"""Finite differences: close to exact scores, with a step chosen automatically, and without side effects."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import small_nets
import torch
from peft import LoraConfig, get_peft_model
from small_nets import a_net, snapshot
from small_nets import squared_errors as net_losses
from tiny_language_models import (
    VOCAB,
    Batch,
    a_batch,
    a_direction,
    episode_losses,
    language_model,
    relative_error,
    token_losses,
    validation_loss,
    with_lora,
)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient, token_scores
from ippo_lightning.influence.coverage import active_blocks
from ippo_lightning.influence.finite_difference import choose_step, displaced

CENTRAL_DOUBLE = 1e-6
"""Tolerance in float64 with two sides: the error is of second order in the step; measured below 1e-7."""
CENTRAL_SINGLE = 3e-3
"""Tolerance in float32 with two sides, at the automatic step; measured 1e-4 to 1e-3."""
SIGNS = 0.99
"""Fraction of episodes with the right sign from one side in float32; measured 0.996 and more."""


def a_llama(adapter: str | None) -> nn.Module:
    """Return a model wide enough for realistic rounding and curvature."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=64, **sizes))
    if adapter is None:
        return model
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    if adapter == "trained":
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def many_episodes(count: int = 256) -> Batch:
    batch = a_batch(count, dtype=torch.float32)
    return replace(batch, factors=torch.randn(count, generator=torch.Generator().manual_seed(1)))


def target(model: nn.Module) -> dict[str, Tensor]:
    return target_gradient(model, validation_loss, [a_batch(32, seed=99, dtype=torch.float32)])


@pytest.mark.parametrize("adapter", [None, "fresh", "trained"], ids=["full", "B still zero", "trained adapter"])
def test_one_forward_gives_the_signs_and_two_forwards_give_the_scores(adapter: str | None) -> None:
    model, batch = a_llama(adapter), many_episodes()
    direction = target(model)
    exact = influence_scores(model, episode_losses, [batch], direction)
    with torch.no_grad():
        known = episode_losses(model.eval(), batch)
    one_sided = influence_scores(
        model, episode_losses, [batch], direction, method="finite_difference", known_losses=lambda _: known
    )
    assert float((one_sided.sign() == exact.sign()).float().mean()) >= SIGNS
    central = influence_scores(model, episode_losses, [batch], direction, method="finite_difference")
    assert relative_error(central, exact) <= CENTRAL_SINGLE


@pytest.mark.parametrize("kind", ["plain", "tied", "lora"])
def test_in_double_precision_two_sides_are_almost_exact(kind: str) -> None:
    # GPT-2, because the norms of the other models round to float32 in every precision
    model = language_model("gpt2", tied=kind == "tied")
    model = with_lora(model, "gpt2") if kind == "lora" else model
    batches = [a_batch(3, seed=1), a_batch(4, seed=2)]
    direction = target_gradient(model, validation_loss, [a_batch(8, seed=9)])
    exact = influence_scores(model, episode_losses, batches, direction, method="per_episode")
    found = influence_scores(model, episode_losses, batches, direction, method="finite_difference")
    assert relative_error(found, exact) <= CENTRAL_DOUBLE


def test_scores_of_tokens_sum_to_the_score_of_the_episode() -> None:
    model, batch = a_llama(None), many_episodes(16)
    direction = target(model)

    (tokens,) = token_scores(model, token_losses, [batch], direction, method="finite_difference")
    total = influence_scores(model, episode_losses, [batch], direction, method="finite_difference")
    assert tokens.shape == (16, 9)
    assert not tokens[~batch.response_mask[:, 1:]].any()
    assert relative_error(tokens.sum(dim=1), total) <= CENTRAL_SINGLE


def test_the_step_grows_with_the_parameters_and_shrinks_with_the_direction() -> None:
    model = language_model("llama")
    direction = a_direction(model)
    plain = choose_step(model, active_blocks(model, direction), one_sided=True)
    longer = {name: 10 * block for name, block in direction.items()}
    assert choose_step(model, active_blocks(model, longer), one_sided=True) == pytest.approx(plain / 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    assert choose_step(model, active_blocks(model, direction), one_sided=True) == pytest.approx(3 * plain)


def test_the_step_is_positive_for_a_model_of_zeros() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert choose_step(model, active_blocks(model, a_direction(model)), one_sided=False) > 0


@pytest.mark.parametrize("fails", [False, True], ids=["without error", "with an error in between"])
def test_afterwards_the_model_is_equal_to_the_bit(fails: bool) -> None:
    model = small_nets.dirty_net()
    direction = a_direction(model)
    before, places = snapshot(model), [parameter.data_ptr() for parameter in model.parameters()]
    calls: list[int] = []

    def losses(module: nn.Module, batch: small_nets.Batch) -> Tensor:
        calls.append(1)
        if fails and len(calls) == 3:
            raise KeyboardInterrupt
        return net_losses(module, batch)

    batches = [small_nets.a_batch(seed=seed) for seed in (1, 2)]
    if fails:
        with pytest.raises(KeyboardInterrupt):
            influence_scores(model, losses, batches, direction, method="finite_difference")
    else:
        influence_scores(model, losses, batches, direction, method="finite_difference")
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert places == [parameter.data_ptr() for parameter in model.parameters()]


def test_a_tied_parameter_moves_once() -> None:
    model = language_model("gpt2", tied=True)
    direction = a_direction(model)
    name = "transformer.wte.weight"
    before = model.get_parameter(name).detach().clone()
    with displaced(model, active_blocks(model, direction), 0.5):
        torch.testing.assert_close(model.lm_head.weight.detach(), before + 0.5 * direction[name])
    assert torch.equal(model.lm_head.weight, before)


def test_half_precision_gives_a_warning_and_full_precision_does_not() -> None:
    model, batch = language_model("llama", dtype=torch.bfloat16), a_batch(3, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="computes in bfloat16.*use method='hooks'"):
        influence_scores(model, episode_losses, [batch], a_direction(model), method="finite_difference")
    single = a_llama(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        influence_scores(single, episode_losses, [many_episodes(3)], target(single), method="finite_difference")


def test_known_losses_of_a_wrong_shape_are_refused() -> None:
    model, batch = a_net(), small_nets.a_batch()
    with pytest.raises(UserError, match=r"known_losses: returned shape \(2,\) for batch 0, expected \(6,\)"):
        influence_scores(
            model,
            net_losses,
            [batch],
            a_direction(model),
            method="finite_difference",
            known_losses=lambda _: torch.zeros(2),
        )
