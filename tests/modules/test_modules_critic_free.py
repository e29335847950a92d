"""GRPO and its kin: each loss is that of its paper, scores are its gradients, and a run is as exact as one of PPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import ALGORITHMS, critic_free_module, loss_by_hand
from torch import Tensor
from training_parts import TINY, prepared, same, tiny_loop, tiny_policy, trainable

from ippo_lightning.algorithms import CISPOLoss, ClippedLoss
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings
from ippo_lightning.records import Minibatch, TextEpisodes

BATCH = {"prompts": ["1+2?", "9-4?"], "responses": ["1+2=3;#3", "9-4=5;#5"]}


def moved(name: str, **changes: Any) -> tuple[PPOModule, TextEpisodes]:
    """A module in fp64, and episodes from another policy: ratios on both sides of the bounds, another reference."""
    module = critic_free_module(name, **changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.policy.policy_parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    episodes = prepared(module)
    module.double()
    with torch.no_grad():
        log_probs = module.score(episodes).log_probs
    off = ~episodes.mask
    noise = [torch.randn(off.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    advantages = noise[2] if name == "reinforce_plus_plus" else noise[2][:, :1].expand(off.shape)
    return module, episodes.evolve(
        log_probs=(log_probs + 0.2 * noise[0]).masked_fill(off, 0.0),
        ref_log_probs=(log_probs + noise[1]).masked_fill(off, 0.0),
        advantages=advantages.masked_fill(off, 0.0),
    )


def by_hand(name: str, module: PPOModule, episodes: TextEpisodes) -> list[Tensor]:
    log_probs = module.score(episodes).log_probs
    return [loss_by_hand(ALGORITHMS[name].written, log_probs[row], episodes, row) for row in range(len(episodes))]


def gradients_of(loss: Tensor, module: PPOModule) -> dict[str, Tensor]:
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(names.values()), retain_graph=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loss_of_a_minibatch_and_its_gradient_are_those_of_the_formula(name: str) -> None:
    module, episodes = moved(name)
    weights = torch.linspace(0.5, 1.5, len(episodes), dtype=torch.float64)
    minibatch = Minibatch(
        episodes=episodes, weights=weights, value_weights=weights, policy_denominator=7.0, value_denominator=7.0
    )
    loss, sums = module.minibatch_loss(minibatch)
    expected = sum(weight * row for weight, row in zip(weights, by_hand(name, module, episodes), strict=True)) / 7.0
    if name != "cispo":  # whose value is another one, with the same gradient
        torch.testing.assert_close(sums["policy_loss"], expected.detach(), rtol=1e-9, atol=1e-12)
    found, wanted = gradients_of(loss, module), gradients_of(expected, module)
    for parameter, gradient in wanted.items():
        # transformers normalises in float32 whatever the weights are
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("method", ["hooks", "per_episode"])
def test_scores_equal_plain_autograd_of_the_formula(name: str, method: str) -> None:
    module, episodes = moved(name)
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [BATCH])
    expected = []
    for row in by_hand(name, module, episodes):
        gradients = gradients_of(row, module)
        expected.append(sum((gradients[n] * vector).sum() for n, vector in direction.items()))
    wanted = torch.stack(expected)
    found = influence_scores(
        module, lambda owner, part: owner.episode_losses(part), [episodes], direction, method=method
    )
    tolerance = 1e-6 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted.to(found), rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_scores_without_a_backward_are_close_to_the_exact_ones(name: str) -> None:
    module = critic_free_module(name)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.policy.policy_parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    episodes = prepared(module)
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [BATCH])

    def scores(losses: Any = PPOModule.episode_losses, **way: Any) -> Tensor:
        return influence_scores(module, losses, [episodes], direction, **way)

    exact, known = scores(method="hooks"), module.rollout_losses
    torch.testing.assert_close(known(episodes), module.episode_losses(episodes).detach(), rtol=1e-5, atol=1e-5)
    certain = exact.abs() > 1e-3 * exact.abs().max()
    for way in ({"known_losses": known}, {}):
        found = scores(PPOModule.difference_losses, method="finite_difference", **way)
        assert torch.equal(found.sign()[certain], exact.sign()[certain])
        # float32, one side: rounding and curvature of a step of 1e-4; a bound within the step costs a third and more
        assert float((found - exact).norm()) < 0.02 * float(exact.norm())
    assert module.loss is ALGORITHMS[name].settings.get("loss", module.loss)


def policy_of(kind: str, folder: Path) -> CausalLMPolicy:
    if kind == "full":
        return tiny_policy(value="none")
    lora = LoraSettings(r=2)
    if kind == "lora":
        return tiny_policy(value="none", lora=lora)
    base = folder / "base"
    if not base.exists():
        wide = {**TINY, "hidden_size": 64, "intermediate_size": 64}
        tiny_policy(config=wide, value="none", reference="none").save_pretrained(base)
    settings: dict[str, Any] = {"quantization": "nf4", "tokenizer": arithmetic_tokenizer(), "value": "none"}
    return CausalLMPolicy(pretrained=str(base), lora=lora, **settings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("grpo", kind) for kind in ("full", "lora", "nf4")),
        *(pytest.param(name, "full", marks=pytest.mark.slow) for name in ALGORITHMS if name != "grpo"),
        *(pytest.param(name, kind, marks=pytest.mark.slow) for name in ("dapo", "rloo") for kind in ("lora", "nf4")),
    ],
)
def test_a_run_that_resumes_equals_one_that_was_never_interrupted(name: str, kind: str, tmp_path: Path) -> None:
    def run(folder: str, iterations: int, **changes: Any) -> PPOModule:
        module = critic_free_module(name, policy=policy_of(kind, tmp_path), update={"num_epochs": 2})
        callbacks = [InfluenceFilter(min_keep=1)]
        loop = tiny_loop(tmp_path / folder, module, callbacks=callbacks, max_iterations=iterations, **changes)
        loop.fit()
        return module

    whole = run("whole", 3)
    run("broken", 1)
    resumed = run("broken", 3, resume=True)
    assert same(trainable(whole), trainable(resumed))
    assert whole.progress_state() == resumed.progress_state()
    assert whole.last_stats is not None
    assert whole.last_stats.optimizer_steps > 0


def test_one_response_per_prompt_is_refused_where_responses_are_compared() -> None:
    with pytest.raises(UserError, match=r"sampling\.num_responses: 1, and GroupBaseline compares .* at least 2"):
        critic_free_module("grpo", sampling=SamplingSettings(num_responses=1))
    critic_free_module("reinforce_plus_plus", sampling=SamplingSettings(num_responses=1))


@pytest.mark.parametrize("loss", [ClippedLoss(beta=0.1), CISPOLoss(beta=0.1)], ids=["clipped", "cispo"])
def test_a_divergence_from_no_reference_is_refused(loss: Any) -> None:
    policy = tiny_policy(value="none", reference="none")
    with pytest.raises(UserError, match=r"policy\.reference: none, and C\w+Loss has a beta above 0"):
        critic_free_module("grpo", policy=policy, loss=loss)
    critic_free_module("grpo", policy=policy, loss=type(loss)())


def test_the_log_has_the_fraction_of_clipped_responses_where_responses_have_ratios() -> None:
    module, episodes = moved("gspo")
    ones = torch.ones(len(episodes), dtype=torch.float64)
    minibatch = Minibatch(
        episodes=episodes, weights=ones, value_weights=ones, policy_denominator=1.0, value_denominator=1.0
    )
    _, sums = module.minibatch_loss(minibatch)
    log_probs = module.score(episodes).log_probs.detach()
    clipped = 0
    for row, length in enumerate(episodes.lengths.tolist()):
        ratio = float((log_probs - episodes.log_probs)[row, :length].mean().exp())
        clipped += length * (ratio > 1 + 4e-4 or ratio < 1 - 3e-4)
    assert clipped > 0
    assert float(sums["clipped_tokens"]) == clipped
